"""BatchNorm running statistics, measured afresh.

Owns ``reestimate``. Weights that have just been averaged, pruned or rescaled seldom fit the running
statistics that were gathered on the way; a few batches set them right.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set every running mean and variance to the plain average over ``batches``.

    Only the BatchNorms are put into training mode, so dropout stays off; every module gets its mode back.

    Args:
        module: changed in its BatchNorm buffers only.
        batches: inputs, float32[N, C, H, W]. If there is none, nothing changes.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    modes = [(m, m.training) for m in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    first = True
    try:
        for batch in batches:
            if first:
                _start(norms)
                first = False
            module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for child, training in modes:
            child.training = training


def _start(norms: list[_BatchNorm]) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
