"""Pruning with data alone: which channels the others can replace, and with which weights.

Owns Grams (``grams.py``), the staged runs of a network (``stages.py``) and the fit of what stays, by least squares
(``refit.py``; ``solving.py`` is its arithmetic). The order and the algebra are prunec.passes.fitting's; samples are
read in prunec.data. Read ``reconstruct.py`` first.
"""
