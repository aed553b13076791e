"""Data alone: which channels go where the others make up for them, and what those compute with from then on.

Owns Grams, the staged runs of a network and the least-squares fits. The order and the algebra are
prunec.passes.fitting's; samples are read in prunec.data. Read ``reconstruct.py`` first.
"""
