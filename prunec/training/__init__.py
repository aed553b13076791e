"""Training towards sparsity: ``sparsify``, the three lines that anyone's loop needs.

Owns the public names only; the rooms below have the work, and ``run/run.py`` is the whole of ``prunec train-
prune``.
"""

from __future__ import annotations

from prunec.training.sparsity.ista import Ista, Penalised
from prunec.training.sparsity.sparsify import sparsify

__all__ = ["Ista", "Penalised", "sparsify"]
