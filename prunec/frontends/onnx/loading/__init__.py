"""ONNX file or ModelProto -> nodes: bytes, weights left in the file, calls of functions written out.

Owns what is read and refused before anybody asks what a node means. Read ``load.py`` first, then ``nodes.py``.
"""
