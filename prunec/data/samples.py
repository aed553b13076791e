"""A user's inputs, read from disk one batch at a time: what a file must hold to be an input, and the batches.

Owns the checks of every array (shape, dtype, finite) and how arrays are cut into batches. Which files
make up a sample is sample_files.py's; random inputs are probes.py's. Never holds more than one batch.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from prunec.errors import BadInput
from prunec.ir.arrays import Array
from prunec.runtime.probes import Feed, Slot

MAX_ROWS = 8
"""Rows of the batches that large arrays are cut into."""
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for a damaged file."""
_MAX_ELEMENTS = 1 << 21
"""Most elements of an input per batch; a single row may have more."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One array on disk: its place, for messages, and how to load it.

    ``prepared`` marks arrays that prunec made itself (decoded images), whose dtype may be converted freely.
    """

    where: str
    load: Callable[[], Array]
    prepared: bool = False


Record = Mapping[str, Source]
"""Arrays that belong together: one per input name."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A set of inputs. Iterating reads it from disk, batch by batch, and checks what is read.

    The first axis of an input counts samples. An input whose first axis is open takes batches of up to
    ``rows``; one whose first axis is fixed takes as many as it says.

    Args:
        name: the folder or file, for messages.
        slots: the inputs.
        records: never empty.
        rows: the most rows of a batch.

    Raises (while iterating):
        BadInput: an array does not fit its input, is empty, or holds something that is not a number.
    """

    name: str
    slots: tuple[Slot, ...]
    records: tuple[Record, ...]
    rows: int = MAX_ROWS

    def __iter__(self) -> Iterator[Feed]:
        for record in self.records:
            yield from self._batches(record)

    def first(self) -> Feed:
        """Return the first batch."""
        return next(iter(self))

    def that_run(self, run: Callable[[Feed], object], model: str) -> Samples:
        """Return these samples, in batches that ``run`` accepts: one row at a time if more do not run.

        Raises:
            BadInput: it takes neither.
        """
        return first_that_runs((self, replace(self, rows=1)), run, model)

    def _batches(self, record: Record) -> Iterator[Feed]:
        arrays = {slot.name: _fitted(record[slot.name], slot) for slot in self.slots}
        cuts = {slot.name: _cuts(arrays[slot.name], slot, self.rows, record[slot.name].where) for slot in self.slots}
        count = _agreed(self.name, cuts)
        for index in range(count):
            yield {
                slot.name: _checked(
                    arrays[slot.name][cuts[slot.name][index if len(cuts[slot.name]) > 1 else 0]],
                    slot,
                    record[slot.name],
                )
                for slot in self.slots
            }


class Looked(Protocol):
    """Inputs, batch by batch: samples, or those of them that are not held out."""

    @property
    def name(self) -> str: ...

    def __iter__(self) -> Iterator[Feed]: ...

    def first(self) -> Feed:
        """Return the first batch."""

    def that_run(self, run: Callable[[Feed], object], model: str) -> Self:
        """Return the same inputs in batches that ``run`` accepts."""


Some = TypeVar("Some", bound=Looked)


def first_that_runs(versions: Iterable[Some], run: Callable[[Feed], object], model: str) -> Some:
    """Return the first of several ways to cut the same inputs into batches whose first batch ``run`` accepts.

    Raises:
        BadInput: it accepts none.
    """
    failure: Exception | None = None
    name = ""
    for looked in versions:
        name, feed = looked.name, looked.first()
        try:
            run(feed)
        except Exception as error:  # noqa: BLE001 - runtimes and user modules raise anything
            failure = error
        else:
            return looked
    assert failure is not None
    text = " ".join(str(failure).split())[:300]
    raise BadInput(
        f"{model} does not run on the inputs of {name}",
        why=text or type(failure).__name__,
        do="give inputs of a shape that the network takes",
    ) from failure


def num_rows(feed: Feed) -> int:
    """Return how many samples a batch holds: the longest first axis."""
    return max((value.shape[0] for value in feed.values() if value.ndim > 1), default=1)


def _fitted(source: Source, slot: Slot) -> Array:
    """Read an array; one without a batch axis gets one."""
    try:
        loaded = array = source.load()
    except UNREADABLE as error:
        raise BadInput(
            f"cannot read {source.where}", why=str(error)[:200], do="give arrays of numbers, as numpy.save writes them"
        ) from error
    if array.ndim == len(slot.shape) - 1 and slot.shape and (not _is_open(slot.shape[0]) or len(slot.shape) > 1):
        array = array[None]
    fits = array.ndim == len(slot.shape) and all(
        _is_open(size) or size == have for size, have in list(zip(slot.shape, array.shape, strict=True))[1:]
    )
    if not fits or array.size == 0:
        raise BadInput(
            f"{source.where} has shape {_text(loaded.shape)}, which input {slot.name!r} does not take",
            why=f"it takes {_text(slot.shape)}; the first axis counts samples and may be missing",
            do="save the inputs as the network reads them, or choose the size with --input-shape",
        )
    return array


def _cuts(array: Array, slot: Slot, rows: int, where: str) -> list[slice]:
    """Return the pieces of the first axis that make a batch each."""
    if not slot.shape:
        return [slice(None)] if array.ndim else [()]  # type: ignore[list-item]  # an empty index keeps a scalar array
    count, wanted = array.shape[0], slot.shape[0]
    if isinstance(wanted, int):
        if count % wanted:
            raise BadInput(
                f"{where} has {count} rows, input {slot.name!r} takes {wanted} at a time",
                do=f"give a multiple of {wanted}",
            )
        step = wanted
    else:
        step = max(1, min(rows, _MAX_ELEMENTS // max(1, math.prod(array.shape[1:]))))
    return [slice(start, start + step) for start in range(0, count, step)]


def _agreed(name: str, cuts: Mapping[str, Sequence[slice]]) -> int:
    counts = {len(parts) for parts in cuts.values()} - {1}
    if len(counts) > 1:
        told = ", ".join(f"{key}: {len(parts)}" for key, parts in cuts.items())
        raise BadInput(f"the inputs in {name} hold different numbers of samples", why=told)
    return counts.pop() if counts else 1


def _checked(array: Array, slot: Slot, source: Source) -> Array:
    if array.dtype.kind not in "biuf":
        raise BadInput(f"{source.where} holds {array.dtype}, not numbers", do="give an array of numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(
            f"{source.where} holds NaN or infinity", why="nothing can be measured on such inputs", do="leave it out"
        )
    return _cast(array, slot, source)


def _cast(array: Array, slot: Slot, source: Source) -> Array:
    """Return the array in the input's dtype; conversions that could change its meaning are refused."""
    wanted = np.dtype(slot.dtype)
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    kinds = {_kind(array.dtype), _kind(wanted)}
    if not (len(kinds) == 1 or kinds <= {"i", "u"} or source.prepared):
        raise BadInput(
            f"{source.where} holds {array.dtype}, input {slot.name!r} takes {slot.dtype}",
            why="only you know how one becomes the other (by which scale and mean)",
            do=f"save it as {slot.dtype}, prepared as the network reads it",
        )
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if wanted.kind in "iu" and not (cast == array).all():
        raise BadInput(f"{source.where} holds numbers beyond {slot.dtype}, which input {slot.name!r} takes")
    if _kind(wanted) == "f" and not np.isfinite(cast).all():
        raise BadInput(f"{source.where} holds numbers beyond {slot.dtype}, which input {slot.name!r} takes")
    return np.ascontiguousarray(cast)


def _kind(dtype: np.dtype[Any]) -> str:
    return "f" if dtype.name == "bfloat16" else dtype.kind  # no type of numpy's own


def _is_open(size: Any) -> bool:
    return not isinstance(size, int)


def _text(shape: Sequence[Any]) -> str:
    return "x".join(str(size) if isinstance(size, int) else "?" for size in shape) or "() (a single number)"
