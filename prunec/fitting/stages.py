"""Running a network over all data a stretch at a time: what lies between two stretches is kept, on disk beyond a limit.

Owns the store of activations and the contract of a staged network. Each layer of a network is run once, however many
places are looked at, and weights ahead may change between stretches. Who runs it: stages_onnx.py, stages_module.py.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from prunec.data.samples import num_rows
from prunec.ir.arrays import Array
from prunec.runtime.probes import Feed


class Stages(Protocol):
    """A network and data, run as far as it has been asked for."""

    @property
    def num_batches(self) -> int: ...

    def has(self, name: str) -> bool:
        """Tell whether a value can be asked for."""

    def advance(self, names: Iterable[str]) -> None:
        """Run what the values need, on all data."""

    def value(self, name: str, batch: int) -> Array:
        """Return a value that ``advance`` has reached, and ``drop`` has not taken away."""

    def drop(self, names: Iterable[str]) -> None:
        """Forget values that were asked for; those that nodes ahead read stay."""

    def rest(self, names: Iterable[str], tensors: Mapping[str, Array]) -> list[Array]:
        """Return what values would be for the first batch if parameters ahead had other contents; nothing changes."""

    def set_tensors(self, tensors: Mapping[str, Array]) -> None:
        """Give parameters new contents, from here on."""


def first_rows(feeds: Sequence[Feed], rows: int) -> list[Feed]:
    """Return the first batch, ``rows`` of it at most; other batches have shown that the network takes any number.

    Batches of one size only are taken as they are.
    """
    counts = {num_rows(feed) for feed in feeds}
    if len(counts) == 1 or rows >= num_rows(feeds[0]):
        return list(feeds[:1])
    return [{name: value[:rows] for name, value in feeds[0].items()}]


class Store:
    """Arrays by (name, batch): in memory up to a limit, in files beyond it.

    Args:
        limit: bytes kept in memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._count = limit, 0, 0
        self._arrays: dict[str, dict[int, Array | Path]] = {}
        self._folder: Path | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    def put(self, name: str, batch: int, array: Array) -> None:
        place: Array | Path = array
        if self._held + array.nbytes > self._limit and array.nbytes > _SMALL:
            place = self._path()
            np.save(place, array)
        else:
            self._held += array.nbytes
        self._arrays.setdefault(name, {})[batch] = place

    def get(self, name: str, batch: int) -> Array:
        found = self._arrays[name][batch]
        return np.load(found) if isinstance(found, Path) else found

    def drop(self, name: str) -> None:
        for found in self._arrays.pop(name, {}).values():
            if isinstance(found, Path):
                found.unlink()
            else:
                self._held -= found.nbytes

    def _path(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="prunec-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # at the exit, too
        self._count += 1
        return self._folder / f"{self._count}.npy"


_SMALL = 1 << 16
"""Arrays up to so many bytes are never worth a file."""
