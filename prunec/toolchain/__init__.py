"""prunec inside other people's toolchains: what goes in comes out, of the same kind.

Owns the ways in and out of models that are already in memory: ONNX messages, onnx_ir models, graphsurgeon graphs,
exported programs, and passes for the pass managers of torch.fx, onnx_ir and Olive. What is done to a model is
prunec/api.py's. Read models.py first.
"""
