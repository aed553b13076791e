"""Which images make up which batch, and every other random number of a run.

Owns the order of the images. All of it is a function of (seed, step): a run that goes on from step 1,000
needs no memory of the 999 before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from prunec.training.augment import Pipeline
from prunec.training.data import Images


def generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return a CPU generator for one purpose at one step or epoch."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Batches:
    """Training batches: each epoch is a new order of all images, less the last few that fill no batch.

    Args:
        images: on the training device.
        batch_size: at most this many; a smaller set is one batch.
        pipeline: makes inputs of pixels.
        seed: of order and augmentation.
    """

    def __init__(self, images: Images, batch_size: int, pipeline: Pipeline, seed: int) -> None:
        self._images = images
        self._pipeline = pipeline
        self._seed = seed
        self._batch_size = min(batch_size, len(images))
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)
        self.steps_per_epoch = max(1, len(images) // self._batch_size)

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs float32[N, C, H, W] and the targets of a step of the run, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self._images), generator=generator(self._seed, "order", epoch))
            self._order, self._epoch = order.to(self._images.pixels.device), epoch
        chosen = self._order[position * self._batch_size : (position + 1) * self._batch_size]
        augmented = self._pipeline.train(self._images.pixels[chosen], generator(self._seed, "augment", step))
        return augmented, self._images.targets[chosen]


def plain_batches(
    images: Images, pipeline: Pipeline, batch_size: int, most: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs and targets without augmentation, in order: all of them, or those of ``most`` batches."""
    for index, start in enumerate(range(0, len(images), batch_size)):
        if most is not None and index >= most:
            return
        chosen = slice(start, start + batch_size)
        yield pipeline.test(images.pixels[chosen]), images.targets[chosen]
