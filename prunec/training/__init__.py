"""Training towards sparsity: ``sparsify``, for your own training loop.

Owns the public names only; the rooms below do the work, and ``run/run.py`` is ``prunec train-prune`` as a whole.
"""

from __future__ import annotations

from prunec.training.sparsity.ista import Ista, Penalised
from prunec.training.sparsity.sparsify import sparsify

__all__ = ["Ista", "Penalised", "sparsify"]
