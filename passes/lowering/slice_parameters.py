"""Parameters (initializers) cut to the channels that stay, folds taken in on the way; backends only write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Graph
from prunec.ir.plan import PrunePlan
from prunec.passes.lowering.bias_folds import Carried, carry


def slice_params(
    graph: Graph,
    plan: PrunePlan,
    keeps: Mapping[str, Mapping[int, Array]],
    folded: Mapping[str, Array],
    carried: Mapping[str, Sequence[Carried]],
) -> dict[str, Array]:
    """Return the new parameters, one after the other: no more than one is in memory unsliced."""
    grouped = {item.param: item.keep for item in plan.grouped}
    result: dict[str, Array] = {}
    for name, param in graph.params.items():
        axes = keeps.get(name, {})
        if not axes and name not in folded and name not in carried and name not in grouped:
            continue
        array = folded.get(name, param.array)
        if name in carried:
            mask = carried[name][0].mask
            array = array * graph.params[mask].array if mask else np.array(array)
            for each in carried[name]:
                carry(array, each)
        if name in grouped:
            array = _slice_grouped(array, axes.get(0), grouped[name])
            axes = {axis: index for axis, index in axes.items() if axis not in (0, 1)}
        result[name] = np.ascontiguousarray(cut_out(array, axes), dtype=param.array.dtype)
    return result


_AT_ONCE = 1 << 20
"""Elements that are cut at a time: what lies between the cuts stays in the cache."""


def cut_out(array: Array, axes: Mapping[int, Array]) -> Array:
    """Return what the ascending indices of each axis leave of an array."""
    if not axes or array.size <= _AT_ONCE:
        return _taken(array, axes)
    rows = axes.get(0, np.arange(len(array)))
    shape = tuple(len(axes[axis]) if axis in axes else size for axis, size in enumerate(array.shape))
    made, step = np.empty(shape, array.dtype), max(1, _AT_ONCE * len(array) // array.size)
    for at in range(0, len(array), step):
        # Weights in a file may lie unaligned: numpy then copies all of what it takes from, so that is a few rows.
        first, end = np.searchsorted(rows, (at, at + step))
        here = {**axes, 0: rows[first:end] - at} if 0 in axes else axes
        made[first:end] = _taken(array[at : at + step], here)
    return made


def _taken(array: Array, axes: Mapping[int, Array]) -> Array:
    for axis, index in axes.items():
        array = array.take(index, axis=axis)
    return array


def _slice_grouped(weight: Array, rows: Array | None, slots: Sequence[Sequence[int]]) -> Array:
    """Slice axis 0 (kept rows) and axis 1 (slots of each row's convolution group) of a grouped weight."""
    per_group = weight.shape[0] // len(slots)
    kept = np.arange(weight.shape[0]) if rows is None else rows
    width = max((len(s) for s in slots), default=0)
    columns = np.zeros((len(slots), width), dtype=np.int64)
    for group, kept_slots in enumerate(slots):
        columns[group, : len(kept_slots)] = kept_slots
    return np.asarray(weight[kept[:, None], columns[kept // per_group]])
