"""Edits -> pruned ONNX model, and models -> files.

Owns slices of initializers, the sizes written in a file, and atomic writing. Read ``backend.py`` first;
``rewrite.py`` has a function for each op.
"""
