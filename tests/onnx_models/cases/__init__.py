"""One op between two convolutions, in each way that exporters write it: the cases of the ONNX tests.

Owns what becomes of channels and constants behind each: passes.py, refused.py (channels stay, with a reason),
computed_sizes.py (sizes are computed while the network runs). An op is added in values.py or moves.py, with its row.
"""
