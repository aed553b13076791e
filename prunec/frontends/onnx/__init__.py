"""ONNX file or ModelProto -> Graph: the order of loading, sizes, folding and the table of op types.

Owns the sweep over the nodes and the check of what came out. Files are written in prunec.backends.onnx. Read
``frontend.py`` first.
"""
