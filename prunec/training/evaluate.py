"""Class scores of a network, and how often they are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunec.errors import UnsupportedModel
from prunec.training.augment import Pipeline
from prunec.training.batches import plain_batches
from prunec.training.data import Images
from prunec.validate import evaluating


def scores_of(output: Any) -> torch.Tensor:
    """Return the class scores, float[N, classes], among what a network returns.

    The first tensor counts: networks with auxiliary heads return those behind it.

    Raises:
        UnsupportedModel: there is no tensor of rank 2 first.
    """
    first = output
    while isinstance(first, tuple | list | dict) and first:
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    if not isinstance(first, torch.Tensor) or first.dim() != 2:
        shape = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
        raise UnsupportedModel(
            f"the network's output is {shape}, not one score per image and class",
            do="train it in a loop of your own with prunec.training.sparsify, then use prunec prune",
        )
    return first


@torch.no_grad()
def accuracy(module: nn.Module, images: Images, pipeline: Pipeline, batch_size: int = 500) -> float:
    """Return the share of images whose highest score is their label's, in eval mode."""
    correct = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    with evaluating(module):
        labels = images.labels.split(batch_size)
        for inputs, wanted in zip(plain_batches(images, pipeline, batch_size), labels, strict=True):
            correct += (scores_of(module(inputs)).argmax(1) == wanted).sum()
    return int(correct) / len(images)
