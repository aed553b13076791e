"""ONNX file or ModelProto -> Graph: load and check, sizes, constant folding.

Owns everything up to the Graph but the table of op types, which is in ``ops/``. Files are written in
prunec.backends.onnx. Read ``frontend.py`` first.
"""
