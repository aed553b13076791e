"""ONNX file -> torch module that can be trained, or run in double precision.

Owns the table ONNX op -> torch calls. It prunes nothing: what comes out is traced like any module. Read
``module.py`` first.
"""
