"""ISTA: the optimiser that brings gammas to exactly zero, and its control.

Owns the paper's method for any training loop. prunec.passes finds the channel classes. Read
``sparsify.py`` first.
"""
