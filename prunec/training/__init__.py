"""Training towards sparsity: ISTA, γ–W rescaling, the data and the loop of ``prunec train-prune``.

``sparsify`` is what other people's loops need; ``train_prune`` is the whole job.
"""

from __future__ import annotations

from prunec.training.sparsity.ista import Ista, Penalised
from prunec.training.sparsity.sparsify import sparsify

__all__ = ["Ista", "Penalised", "sparsify"]
