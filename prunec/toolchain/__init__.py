"""prunec inside other toolchains: a model in memory in, a model of the same kind out.

Owns reading and writing models that are already in memory (ONNX messages, onnx_ir models, graphsurgeon graphs,
exported programs), and passes for the pass managers of torch.fx, onnx_ir and Olive. prunec/api.py prunes.
Read models.py first.
"""
