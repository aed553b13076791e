"""Running a network over all data one stretch of nodes at a time; values between stretches are kept, if needed on disk.

Owns the store of activations and the interface of a staged network. Each node runs once, however many
values are read, and weights of later nodes may change between stretches. See stages_onnx.py and stages_module.py.
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

    def keep(self, names: Iterable[str]) -> None:
        """Hold on to these values from the moment they are computed; ``drop`` leaves them."""

    def advance(self, names: Iterable[str]) -> None:
        """Run the nodes that these values need, on all data."""

    def value(self, name: str, batch: int) -> Array:
        """Return a value that ``advance`` has computed and ``drop`` has not removed."""

    def drop(self, names: Iterable[str]) -> None:
        """Release values that were asked for; those that later nodes read stay."""

    def rest(self, names: Iterable[str], tensors: Mapping[str, Array]) -> list[Array]:
        """Return the values of the first batch for other contents of later parameters; the network does not change."""

    def set_tensors(self, tensors: Mapping[str, Array]) -> None:
        """Give parameters new contents, from here on."""


def first_rows(feeds: Sequence[Feed], rows: int) -> list[Feed]:
    """Return the first batch, at most ``rows`` of it, if batches of other sizes show that the network accepts any.

    Batches of one size only are taken as they are.
    """
    counts = {num_rows(feed) for feed in feeds}
    if len(counts) == 1 or rows >= num_rows(feeds[0]):
        return list(feeds[:1])
    return [{name: value[:rows] for name, value in feeds[0].items()}]


def fewer(feeds: Sequence[Feed], rows: int) -> list[Feed]:
    """Return the first batches, until they have ``rows`` samples; of a single batch at most so many, as above."""
    found, count = list[Feed](), 0
    for feed in feeds:
        if count >= rows:
            break
        found.append(feed)
        count += num_rows(feed)
    return found if len(found) > 1 else first_rows(feeds, rows)


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
"""Arrays up to this many bytes stay in memory."""
