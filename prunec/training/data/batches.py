"""Which images make up which batch, and every other random number of a run.

Owns the order of the images. Everything is a function of (seed, step), so a run that is resumed at step 1,000
needs nothing of the steps before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch

from prunec.training.data.augment import Pipeline
from prunec.training.data.sources import Source
from prunec.training.learning.execution import send

_AHEAD = 3
"""Batches that are fetched in advance if they come from files."""


def generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return a CPU generator for one purpose at one step or epoch."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Batches:
    """Training batches: each epoch is a new order of all images, without the last few that do not fill a batch.

    Args:
        images: where they come from; batches are on its device.
        batch_size: at most this many; a smaller set is one batch.
        pipeline: makes inputs of pixels.
        seed: of order and augmentation.
        rank, size: of several processes, each takes its share of every batch.
    """

    def __init__(
        self, images: Source, batch_size: int, pipeline: Pipeline, seed: int, rank: int = 0, size: int = 1
    ) -> None:
        self._images = images
        self._pipeline = pipeline
        self._seed = seed
        self._batch_size = min(batch_size, len(images))
        self._share = slice(rank * self._batch_size // size, (rank + 1) * self._batch_size // size)
        self._augmenting = "augment" if size == 1 else f"augment/{rank}/{size}"
        self._orders: dict[int, torch.Tensor] = {}
        self.steps_per_epoch = max(1, len(images) // self._batch_size)
        # Shares may differ by one image: weighting each rank by its share gives the mean of the batch.
        self.loss_weight = (self._share.stop - self._share.start) * size / self._batch_size

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs float32[N, C, H, W] and the targets of a step of the run, counted from 0."""
        self._images.expect([self._chosen(step + ahead) for ahead in range(_AHEAD + 1)])
        pixels, targets = self._images.take(self._chosen(step))
        return self._pipeline.train(pixels, targets, generator(self._seed, self._augmenting, step))

    def _chosen(self, step: int) -> torch.Tensor:
        """Return the numbers of a step's images: those of this process."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            # A batch may be requested while the first ones of the next epoch are being fetched.
            self._orders = {known: order for known, order in self._orders.items() if abs(known - epoch) <= 1}
            order = torch.randperm(len(self._images), generator=generator(self._seed, "order", epoch))
            self._orders[epoch] = send(order, self._images.index_device)
        return self._orders[epoch][position * self._batch_size : (position + 1) * self._batch_size][self._share]


def plain_batches(
    images: Source, pipeline: Pipeline, batch_size: int, *, rank: int = 0, size: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs and targets without augmentation, in order: all of them.

    Of ``size`` processes, ``rank`` takes every ``size``-th batch.
    """
    order = torch.arange(len(images), device=images.index_device)
    for pixels, targets in _taken(images, order.split(batch_size)[rank::size]):
        yield pipeline.test(pixels), targets


def sampled_batches(
    images: Source, pipeline: Pipeline, batch_size: int, most: int, seed: int, *, augmented: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield at most ``most`` batches of random images, since the first images of a folder are all of one class."""
    order = torch.randperm(len(images), generator=generator(seed, "sample", 0))[: most * batch_size]
    batches = send(order, images.index_device).split(batch_size)
    for index, (pixels, targets) in enumerate(_taken(images, batches)):
        if augmented:
            yield pipeline.train(pixels, targets, generator(seed, "augment sample", index))
        else:
            yield pipeline.test(pixels), targets


def _taken(images: Source, batches: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for index, batch in enumerate(batches):
        images.expect(list(batches[index : index + _AHEAD + 1]))
        yield images.take(batch)
