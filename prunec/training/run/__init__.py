"""``prunec train-prune``: the phases of a run, its checkpoints and its results.

Owns the order of the phases. Read ``run.py`` first.
"""
