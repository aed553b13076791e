"""Graph + PrunePlan -> Edits, for either backend.

Owns what a plan means for each node. Read ``lower.py``.
"""
