"""ONNX models for the tests, written out node by node.

Owns the builder that they are written with, the cases of each op, the spellings of exporters, and what is done to a
model: channels made constant or masked. Start with nets.py: ``Net`` is the builder.
"""
