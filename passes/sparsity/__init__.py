"""What training needs to know of a graph: gammas, their penalty, where a scale passes.

Owns analyses only; the optimiser is prunec.training.sparsity's.
"""
