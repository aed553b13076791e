"""Graph + PrunePlan -> Edits, for either backend.

Owns what a plan means for each node: its parameters, biases and attributes. Read ``lower.py`` first.
"""
