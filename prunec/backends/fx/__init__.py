"""Edits -> pruned torch.fx GraphModule.

Owns slices of parameters and the sizes written in a forward. Read ``backend.py`` first; ``rewrite.py`` has a
function for each op.
"""
