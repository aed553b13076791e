"""How large the pruned network may be, and which channels are removed to meet that.

Owns counting and fitting during training; budgets without training are prunec.passes.selection's.
"""
