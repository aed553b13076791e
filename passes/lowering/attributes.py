"""Attributes of nodes that hold sizes, and what they become: a table of ops.

How a backend writes them back is in its rewrite.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.arrays import Array, Mask
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses


def changed_attrs(
    graph: Graph, classes: ChannelClasses, node: Node, keep: Mask, keeps: Mapping[str, Mapping[int, Array]]
) -> dict[str, Any]:
    """Return the attributes of a node that a pruning changes, and positions on an axis that it shortens.

    Positions may be written counted from the end: the same number is another one then.
    """
    rule = _ATTRS.get(node.op)
    if rule is None:
        return {}
    where = _Where(graph, classes, node, keep, keeps)
    before: Mapping[str, Any] = node.attrs
    if node.op in _POSITIONS:
        return dict(rule(where))
    return {key: value for key, value in rule(where) if key not in before or not np.array_equal(value, before[key])}


@dataclass(frozen=True, slots=True, eq=False)
class _Where:
    """One node with what stays of its tensors."""

    graph: Graph
    classes: ChannelClasses
    node: Node
    keep: Mask
    keeps: Mapping[str, Mapping[int, Array]]

    def kept(self, name: str, axis: int) -> Array | None:
        """Return the indices that stay on one axis of a value; None where all do."""
        return self.keeps.get(name, {}).get(axis)

    def size(self, name: str, axis: int) -> int:
        """Return the size of a labelled axis before pruning; shape inference may have left it open."""
        return int(self.classes.labels[name].on(axis)[0].shape[axis])

    @property
    def x(self) -> str:
        return self.node.inputs[0]

    @property
    def out(self) -> str:
        return self.node.outputs[0]


_Changes = Iterator[tuple[str, Any]]


def _conv_groups(at: _Where) -> _Changes:
    groups = at.node.attrs["conv_groups"]
    if groups == 1:
        return
    shape = at.graph.shape(at.x)
    size = shape[1] if shape is not None else None
    index = at.kept(at.x, 1)
    if not isinstance(size, int) or (index is None and at.kept(at.out, 1) is None):
        return
    alive = np.arange(size) if index is None else index
    yield "conv_groups", int(np.unique(alive // (size // groups)).size)


def _new_shape(at: _Where) -> _Changes:
    if at.node.attrs["shape"] is None:  # computed, and of a length that is not known: nothing passes there
        return
    shape = list(at.node.attrs["shape"])
    for axis, index in at.keeps.get(at.out, {}).items():
        shape[axis] = int(index.size)
    yield "shape", shape


def _tile(at: _Where) -> _Changes:
    repeats = list(at.node.attrs["repeats"])
    before = at.graph.shape(at.x) or ()
    offset = len(repeats) - len(before)
    for axis, index in at.keeps.get(at.out, {}).items():
        if axis < offset or before[axis - offset] == 1:
            repeats[axis] = int(index.size)
    yield "repeats", repeats


def _split(at: _Where) -> _Changes:
    sizes, axis = list(at.node.attrs["sizes"]), at.node.attrs["axis"]
    for number, name in enumerate(at.node.outputs):
        index = at.kept(name, axis) if name else None
        if index is not None:
            sizes[number] = int(index.size)
        elif not name:
            index = at.kept(at.x, axis)
            start = sum(at.node.attrs["sizes"][:number])
            if index is not None:
                sizes[number] = int(((index >= start) & (index < start + sizes[number])).sum())
    yield "sizes", sizes


def _slice(at: _Where) -> _Changes:
    attrs = at.node.attrs
    if all(at.kept(at.x, axis) is None for axis in attrs["axes"]):
        return
    starts, ends = list(attrs["starts"]), list(attrs["ends"])
    picks: dict[int, Array] = {}
    for number, (axis, step) in enumerate(zip(attrs["axes"], attrs["steps"], strict=True)):
        index = at.kept(at.x, axis)
        if index is None:
            continue
        size = at.size(at.x, axis)
        cut = slice(starts[number], ends[number], step)
        if step == 1:
            start, end, _ = cut.indices(size)
            starts[number], ends[number] = _rank(index, start), _rank(index, end)
        else:
            chosen = np.arange(size)[cut]
            picks[axis] = np.searchsorted(index, chosen[np.isin(chosen, index)]).astype(np.int64)
    yield "starts", starts
    yield "ends", ends
    if picks:
        yield "picks", picks


def _rank(index: Array, position: int) -> int:
    """Return how many kept indices lie before ``position``."""
    return int(np.searchsorted(index, position))


def _scatter_slice(at: _Where) -> _Changes:
    index = at.kept(at.x, at.node.attrs["axis"])
    if index is not None:
        yield "start", _rank(index, at.node.attrs["start"])
        yield "end", _rank(index, at.node.attrs["end"])


def _gather(at: _Where) -> _Changes:
    indices, axis = at.node.attrs.get("indices"), at.node.attrs["axis"]
    index = at.kept(at.x, axis)
    if indices is None or index is None:
        return
    indices = np.asarray(indices)
    staying = indices if indices.ndim == 0 else indices[np.isin(indices, index)]
    yield "indices", np.searchsorted(index, staying).astype(np.int64)


def _pad(at: _Where) -> _Changes:
    pads = list(at.node.attrs["pads"])
    rank = len(pads) // 2
    for axis, index in at.keeps.get(at.out, {}).items():
        size = at.size(at.out, axis)
        if pads[axis] > 0:
            pads[axis] = _rank(index, pads[axis])
        if pads[rank + axis] > 0:
            pads[rank + axis] = int(index.size) - _rank(index, size - pads[rank + axis])
    yield from _crop(at, pads)


def _crop(at: _Where, pads: list[int]) -> _Changes:
    """Negative padding crops: it counts what stays of the channels that are cut off."""
    rank = len(pads) // 2
    for axis, index in at.keeps.get(at.x, {}).items():
        size = at.size(at.x, axis)
        if pads[axis] < 0:
            pads[axis] = -_rank(index, -pads[axis])
        if pads[rank + axis] < 0:
            pads[rank + axis] = -(int(index.size) - _rank(index, size + pads[rank + axis]))
    yield "pads", pads


def _num_groups(at: _Where) -> _Changes:
    axis = at.node.attrs.get("axis", 1)
    index = at.kept(at.x, axis)
    if index is not None:  # whole groups go
        yield "num_groups", int(index.size) * at.node.attrs["num_groups"] // at.size(at.x, axis)


def _mean(at: _Where) -> _Changes:
    """A mean that zeros have left is larger by what is left of their number."""
    if not at.node.attrs.get("sums") or at.node.attrs["kind"] != "mean":
        return
    scale = 1.0
    for axis in at.node.attrs["axes"]:
        index = at.kept(at.x, axis)
        scale *= 1.0 if index is None else index.size / at.size(at.x, axis)
    if scale != 1.0:
        yield "scale", scale


_ATTRS: Mapping[str, Callable[[_Where], _Changes]] = MappingProxyType(
    {
        "conv": _conv_groups,
        "conv_transpose": _conv_groups,
        "reshape": _new_shape,
        "expand": _new_shape,
        "full": _new_shape,
        "tile": _tile,
        "split": _split,
        "slice": _slice,
        "scatter_slice": _scatter_slice,
        "gather": _gather,
        "pad": _pad,
        "group_norm": _num_groups,
        "reduce": _mean,
    }
)
_POSITIONS = frozenset({"gather", "slice", "scatter_slice"})
"""Ops whose attributes are positions."""
