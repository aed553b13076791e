"""Backends: carry the edits of a PrunePlan out on an FX GraphModule or an ONNX model."""
