"""Networks of PyTorch for the tests.

Owns whole networks in the shapes that people write, those whose forward does odd things, those that are drawn at
random and those that are trained. Not: ONNX models (onnx_models/), graphs without weights (graphs/). Start with
networks.py: its table NETWORKS is what most tests run over.
"""
