"""ISTA: the optimiser that brings gammas to exactly zero, and what steers it.

Owns the paper's method for anyone's loop. Which channels a class has is decided in prunec.passes. Read
``sparsify.py`` first.
"""
