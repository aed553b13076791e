"""``prunec train-prune``: the phases of a run, its checkpoints and what it leaves behind.

Owns the order of the phases. Read ``run.py`` first.
"""
