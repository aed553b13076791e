"""Measuring BatchNorm running statistics again.

Owns ``reestimate``, and how many images are enough for it. Running statistics from training seldom fit weights that
have just been averaged, pruned or rescaled; a few batches correct them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_BATCHES, _FEWEST, _PIXELS = 20, 2, 1 << 26


def enough_batches(batch_size: int, image_shape: Sequence[int]) -> int:
    """Return the number of batches to measure statistics on: 20, or fewer if the images are large.

    A statistic is a mean over all positions of all images, so large images give more samples of it.

    Args:
        image_shape: C, H, W.
    """
    return max(_FEWEST, min(_BATCHES, _PIXELS // (batch_size * math.prod(image_shape[1:]))))


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
