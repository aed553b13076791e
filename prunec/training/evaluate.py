"""How well a network does on the test images."""

from __future__ import annotations

import torch
from torch import nn

from prunec.training.augment import Pipeline
from prunec.training.batches import plain_batches
from prunec.training.data import Images
from prunec.training.objective import Objective
from prunec.validate import evaluating


@torch.no_grad()
def evaluate(
    module: nn.Module, images: Images, pipeline: Pipeline, objective: Objective, batch_size: int = 500
) -> dict[str, float]:
    """Return the scores of ``module`` on ``images``, in eval mode; see ``Objective.scores``."""
    tally = objective.no_tally(images.pixels.device)
    with evaluating(module):
        for inputs, targets in plain_batches(images, pipeline, batch_size):
            tally += objective.tally(objective.logits(module(inputs)), targets)
    return objective.scores(tally)
