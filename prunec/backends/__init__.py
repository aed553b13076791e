"""Backends: the Edits of a plan are carried out on a GraphModule or on an ONNX model.

Owns how a change is written, never what is changed. ``fx/`` and ``onnx/`` mirror the two frontends.
"""
