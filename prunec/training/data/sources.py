"""Where a data set's images come from: tensors on the training device, or files that are read ahead.

Owns ``Source`` and its two forms. Images have numbers; the decoders in imagefiles.py and maskfiles.py know their files,
labels and masks. batches.py asks for numbers; the result depends on these only, never on timing.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from prunec.training.learning.execution import send

Example = tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, Any]]
"""uint8[C, H, W] and its target: an int64 scalar (a label) or uint8[H, W] (a mask)."""


class Decoder(Protocol):
    """Numbered examples in files, decoded one by one; called from several threads."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __call__(self, index: int) -> Example:
        """Decode one."""


class Source(Protocol):
    """Numbered images and their targets."""

    @property
    def device(self) -> torch.device:
        """Where batches are."""

    @property
    def index_device(self) -> torch.device:
        """The device on which ``take`` should get its numbers."""

    def __len__(self) -> int:
        """Return how many there are."""

    def to(self, device: torch.device) -> Source:
        """Return the same images with batches on ``device``."""

    def take(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pixels uint8[n, C, H, W] and targets (int64[n] or uint8[n, H, W]) of int64[n] numbers."""

    def expect(self, batches: Sequence[torch.Tensor]) -> None:
        """Announce the next batches, so that they can be fetched in advance."""


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A source in memory, on one device: a set that is small enough.

    ``pixels`` is uint8[N, C, H, W]; ``targets`` is int64[N] class labels or uint8[N, H, W] masks.
    """

    pixels: torch.Tensor
    targets: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @property
    def index_device(self) -> torch.device:
        return self.pixels.device

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.targets.to(device))

    def take(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = chosen.to(self.device)
        return self.pixels[chosen], self.targets[chosen]

    def expect(self, batches: Sequence[torch.Tensor]) -> None:
        pass


class Streamed:
    """A source in files, for sets that do not fit in memory: threads decode the batches that come next.

    Args:
        decoder: of the files; ``take`` raises its errors.
        device: where batches are put.
    """

    def __init__(self, decoder: Decoder, device: torch.device | None = None) -> None:
        self._decoder = decoder
        self.device = device if device is not None else torch.device("cpu")
        self.index_device = torch.device("cpu")
        self._pool = ThreadPoolExecutor(_num_threads(), thread_name_prefix="prunec-read")
        self._ahead: dict[tuple[int, ...], list[Future[Example]]] = {}

    def __len__(self) -> int:
        return len(self._decoder)

    def to(self, device: torch.device) -> Streamed:
        return Streamed(self._decoder, device)

    def take(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key = tuple(chosen.tolist())
        examples = [future.result() for future in self._ahead.pop(key, None) or self._submit(key)]
        return self._on_device([pixels for pixels, _ in examples]), self._on_device([target for _, target in examples])

    def expect(self, batches: Sequence[torch.Tensor]) -> None:
        wanted = {tuple(batch.tolist()) for batch in batches}
        for key in self._ahead.keys() - wanted:
            for future in self._ahead.pop(key):
                future.cancel()
        for key in sorted(wanted - self._ahead.keys()):
            self._ahead[key] = self._submit(key)

    def _submit(self, key: tuple[int, ...]) -> list[Future[Example]]:
        # Pillow releases the interpreter lock while it decodes, so threads help.
        return [self._pool.submit(self._decoder, index) for index in key]

    def _on_device(self, arrays: Sequence[np.ndarray[Any, Any]]) -> torch.Tensor:
        return send(torch.from_numpy(np.stack(arrays)), self.device)


def read_all(decoder: Decoder) -> Images:
    """Decode everything, in parallel, into tensors on the CPU."""
    count = len(decoder)
    pixels, target = decoder(0)
    all_pixels, targets = np.empty((count, *pixels.shape), np.uint8), np.empty((count, *target.shape), target.dtype)

    def decode(index: int) -> None:
        all_pixels[index], targets[index] = decoder(index)

    with concurrent.futures.ThreadPoolExecutor(_num_threads()) as pool:
        list(pool.map(decode, range(count)))
    return Images(torch.from_numpy(all_pixels), torch.from_numpy(targets))


def read_some(decoder: Decoder, most: int) -> Images:
    """Decode ``most`` examples, evenly spread over all of them, into tensors on the CPU."""
    count = len(decoder)
    chosen = range(count) if count <= most else [index * count // most for index in range(most)]
    examples = [decoder(index) for index in chosen]
    pixels, targets = (torch.from_numpy(np.stack(part)) for part in zip(*examples, strict=True))
    return Images(pixels, targets)


def _num_threads() -> int:
    return min(8, os.cpu_count() or 1)
