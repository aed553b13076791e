"""Running a network over all data one stretch of nodes at a time; values between stretches are kept, if needed on disk.

Owns the store of activations and the interface of a staged network. Each node runs once, however many
values are read, and weights of later nodes may change between stretches. See stages_onnx.py and stages_module.py.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np

from prunec.data.samples import num_rows
from prunec.ir.arrays import Array, Ids
from prunec.runtime.probes import Feed


class Stages(Protocol):
    """A network and data, run as far as it has been asked for."""

    @property
    def num_batches(self) -> int: ...

    @property
    def in_order(self) -> bool:
        """Whether all nodes in front of a value run before it, whether it needs them or not."""

    def has(self, name: str) -> bool:
        """Tell whether a value can be asked for."""

    def keep(self, names: Iterable[str]) -> None:
        """Hold on to these values from the moment they are computed; ``drop`` leaves them."""

    def expect(self, names: Iterable[str]) -> None:
        """Hold on to these values, if there are such, until each was dropped as often as it was expected."""

    def advance(self, names: Iterable[str]) -> None:
        """Run the nodes that these values need, on all data."""

    def value(self, name: str, batch: int) -> Array:
        """Return a value that ``advance`` has computed and ``drop`` has not removed; half precision as float32."""

    def drop(self, names: Iterable[str]) -> None:
        """Release values that were asked for; those that later nodes read stay."""

    def rest(
        self, names: Iterable[str], tensors: Mapping[str, Array], replaced: Mapping[str, Array] = MappingProxyType({})
    ) -> Iterator[list[Array]]:
        """Yield the values of each batch for other contents of later parameters; nothing is kept.

        Args:
            replaced: arrays that later nodes read in place of values that ``advance`` has computed; they broadcast.
        """

    def set_tensors(self, tensors: Mapping[str, Array]) -> None:
        """Give parameters new contents, from here on."""


def wide(value: Array) -> Array:
    """Return a value as sums need it: half precision overflows in them, and numpy is slow with it."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


def in_place_of(value: Array, replaced: Array) -> Array:
    """Return an array of the size and kind of a value, filled with what is to be read in its place."""
    return np.ascontiguousarray(np.broadcast_to(replaced, value.shape).astype(value.dtype))


def parts(feeds: Sequence[Feed], counts: Sequence[int], *, cuts: bool) -> list[list[Feed]]:
    """Return parts of the samples, none of which is in two; each is spread over all, since neighbours are often alike.

    Args:
        counts: how many samples each part is to have, about; fewer of the last ones if there are not as many.
        cuts: the network accepts batches of any size; otherwise batches are taken as they are.
    """
    sizes = [num_rows(feed) for feed in feeds]
    each = 1 if cuts else max(1, sizes[0])
    units = np.repeat(np.arange(len(feeds)), sizes) if cuts else np.arange(len(feeds))
    wanted = [-(-count // each) for count in counts]
    chosen = _evenly(units.size, sum(wanted))
    result = []
    for count in wanted:
        taken = chosen[_evenly(chosen.size, count)]
        chosen = np.setdiff1d(chosen, taken)
        first = np.searchsorted(units, units[taken])
        result.append(_batches(feeds, units[taken], taken - first if cuts else None, max(sizes, default=1)))
    return result


def _evenly(size: int, count: int) -> Ids:
    """Return at most ``count`` numbers below ``size``, evenly spread."""
    count = min(size, count)
    return (np.arange(count) * 2 + 1) * size // max(1, 2 * count)


def _batches(feeds: Sequence[Feed], at: Ids, rows: Ids | None, most: int) -> list[Feed]:
    """Return some batches, or some rows of them joined to batches of at most ``most``."""
    numbers = np.unique(at).tolist()
    if rows is None:
        return [feeds[number] for number in numbers]
    result, waiting = list[Feed](), list[Feed]()
    for number in numbers:
        feed = feeds[number]
        found = {name: value[rows[at == number]] for name, value in feed.items()}
        alike = all(value.shape[1:] == waiting[0][name].shape[1:] for name, value in found.items()) if waiting else True
        if waiting and (not alike or sum(map(num_rows, waiting)) + num_rows(found) > most):
            result.append(_joined(waiting))
            waiting = []
        waiting.append(found)
    return [*result, _joined(waiting)] if waiting else result


def _joined(feeds: Sequence[Feed]) -> Feed:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


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
