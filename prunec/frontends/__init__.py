"""Frontends: a network comes in, and a Graph with the way back to its source goes on.

Owns nothing itself: ``fx/`` reads modules and ``onnx/`` reads files. What can be removed is decided in
prunec.passes.
"""
