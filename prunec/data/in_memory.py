"""Arrays in memory -> records of samples: a tensor, an array, a list of batches, a data loader.

Owns which part of a batch is which input. Folders are sample_files.py's; samples.py checks the arrays. Tensors are
known by what they can do, so that arrays need no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from prunec.data.samples import Record, Source
from prunec.errors import BadInput
from prunec.ir.arrays import Array
from prunec.runtime.probes import Slot

NAME = "the given data"
MOST_BATCHES = 1024
"""Batches that are taken of something that yields them; it may never end."""


def records_of(data: Any, slots: Sequence[Slot]) -> tuple[Record, ...]:
    """Return one record per batch.

    Args:
        data: an array or tensor whose first axis counts samples, for a network with one input; a mapping of them by
            input name; or what yields batches: arrays, mappings, or tuples and lists that begin with the inputs in
            order (a data loader's labels, which come last, are not looked at).

    Raises:
        BadInput: it is none of these, or a batch lacks an input.
    """
    if _is_array(data) or isinstance(data, Mapping):
        return (_record(data, slots, NAME),)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise BadInput(
            f"{type(data).__name__} is no data to calibrate on",
            do="give a folder, an array or tensor of inputs, a list of batches, or a data loader",
        )
    found = [_record(batch, slots, f"{NAME}, batch {at}") for at, batch in enumerate(islice(data, MOST_BATCHES))]
    if not found:
        raise BadInput(f"{NAME} hold no batch", do="give a few hundred typical inputs")
    return tuple(found)


def _record(batch: Any, slots: Sequence[Slot], where: str) -> Record:
    if isinstance(batch, Mapping):
        missing = [slot.name for slot in slots if slot.name not in batch]
        parts = [batch[slot.name] for slot in slots] if not missing else []
    elif _is_array(batch):
        missing, parts = [slot.name for slot in slots[1:]], [batch]
    elif isinstance(batch, tuple | list):
        missing, parts = [slot.name for slot in slots[len(batch) :]], list(batch[: len(slots)])
    else:
        raise BadInput(
            f"{where}: {type(batch).__name__} is no batch of inputs",
            do="give arrays or tensors, or tuples or dicts of them",
        )
    if missing:
        names = ", ".join(slot.name for slot in slots)
        raise BadInput(f"{where} has nothing for input {missing[0]!r}", why=f"the network's inputs are {names}")
    wrong = next((slot.name for slot, part in zip(slots, parts, strict=True) if not _is_array(part)), None)
    if wrong is not None:
        raise BadInput(f"{where} has no array for input {wrong!r}", do="give arrays or tensors")
    return {slot.name: _source(part, where) for slot, part in zip(slots, parts, strict=True)}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _source(value: Any, where: str) -> Source:
    if not isinstance(value, np.ndarray):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()  # numpy has none
    array: Array = value
    return Source(where, lambda: array)
