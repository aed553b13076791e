"""ONNX file -> torch module that can be trained, or run in double precision.

Owns the table ONNX op -> torch calls. It does not prune; the module that it returns is traced like any other. Read
``module.py`` first.
"""
