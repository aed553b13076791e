"""Running networks: ONNX Runtime sessions, and inputs to try a network on.

Owns sessions, providers and probes; what is compared with them is prunec.check's, what a user's files hold is
prunec.data's.
"""
