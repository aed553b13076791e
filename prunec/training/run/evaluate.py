"""Scoring a network on the test images."""

from __future__ import annotations

import torch
from torch import nn

from prunec.runtime.modules import evaluating
from prunec.training.data.augment import Pipeline
from prunec.training.data.batches import plain_batches
from prunec.training.data.sources import Source
from prunec.training.learning.objective import Objective
from prunec.training.learning.ranks import Alone, Ranks

_MOST_IMAGES, _MOST_PIXELS = 500, 1 << 20


@torch.no_grad()
def evaluate(
    module: nn.Module,
    images: Source,
    pipeline: Pipeline,
    objective: Objective,
    image_shape: tuple[int, int, int],
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Return the scores of ``module`` on ``images``, in eval mode; see ``Objective.scores``.

    Args:
        image_shape: (C, H, W) of the images; large ones come in small batches.
        ranks: the processes that share the images; all get the scores of all images.
    """
    ranks = ranks if ranks is not None else Alone()
    tally = objective.no_tally(images.device)
    batch_size = max(1, min(_MOST_IMAGES, _MOST_PIXELS // (image_shape[1] * image_shape[2])))
    with evaluating(module):
        for inputs, targets in plain_batches(images, pipeline, batch_size, rank=ranks.rank, size=ranks.size):
            tally += objective.tally(objective.logits(module(inputs)), targets)
    return objective.scores(ranks.add(tally))
