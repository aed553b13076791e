"""Frontends: a PyTorch module or an ONNX file in, a prunec Graph out."""
