"""Needs: which nodes a pruned graph still has to compute, and where a constant replaces a whole input.

Owns the backward sweep over what survives of a keep mask: inputs that became constant are cut (a
residual branch that vanished turns its Add into an addition of a stored vector), operands of a concat
that became empty are dropped, and what nothing reads any more goes. ``Sweep`` is for many masks of one graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prunec.ir.arrays import Ids, Mask
from prunec.ir.graph import Graph, Node, Shape
from prunec.ir.labels import ChannelClasses, Kept, varying
from prunec.ir.ops import BINARY
from prunec.passes.constants import Constants


@dataclass(frozen=True, slots=True, eq=False)
class Needs:
    """What survives of the graph.

    Args:
        nodes: names of the nodes that must still run.
        cuts: (node name, input index) -> the constant to read there, float64, broadcastable to the
            input, with every position of the axes along which it varies (removed ones included).
        dropped: node name -> indices of concat operands that have no channels left.
    """

    nodes: frozenset[str]
    cuts: Mapping[tuple[str, int], np.ndarray[Any, Any]]
    dropped: Mapping[str, tuple[int, ...]]


def needs(
    graph: Graph, kept: Kept, constants: Constants, cuts: Mapping[tuple[str, int], np.ndarray[Any, Any]] | None = None
) -> Needs:
    """Find what a pruned graph still computes.

    Args:
        cuts: the inputs to take as constant, where that was decided before; None finds them.

    Ensures: a cut that it finds leaves the node's output shape as it was; the other operand spans it.
    """
    wanted = set(graph.outputs)
    nodes: set[str] = set()
    decided, cuts = cuts, dict(cuts or {})
    dropped: dict[str, tuple[int, ...]] = {}
    for node in reversed(graph.nodes):
        if not any(name in wanted for name in node.outputs) and not _has_effects(node):
            continue
        nodes.add(node.name)
        if node.op == "concat":
            empty = tuple(i for i, name in enumerate(node.inputs) if _is_empty(name, node.attrs["axis"], kept))
            if empty and len(empty) < len(node.inputs):
                dropped[node.name] = empty
        cut = _cut(graph, node, kept, constants) if decided is None else None
        if cut is not None:
            cuts[node.name, cut[0]] = cut[1]
        if cuts or node.name in dropped:
            gone = dropped.get(node.name, ())
            wanted.update(n for i, n in enumerate(node.inputs) if (node.name, i) not in cuts and i not in gone)
        else:
            wanted.update(node.inputs)
        wanted.discard("")
    return Needs(frozenset(nodes), cuts, dropped)


class Sweep:
    """``needs`` for many masks of one graph: it sweeps anew only where a mask answers one of its questions otherwise.

    All that a mask decides is whether an operand of a concat is empty, and whether a value is constant on what stays of
    it. Both are almost always: does none of these classes stay? That is one numpy call for all of them.
    """

    _MOST = 16
    """So many answers are known at a time: a search asks about masks that are alike one after another."""

    def __init__(self, graph: Graph, classes: ChannelClasses, constants: Constants) -> None:
        self.graph, self.classes, self.constants = graph, classes, constants
        asked = dict(_questions(graph, classes, constants))
        plain = [owners for owners in asked.values() if owners is not None and owners.size]
        self._owners = np.concatenate([*plain, np.zeros(0, dtype=np.int64)])
        self._starts = np.cumsum([0, *(owners.size for owners in plain)])[:-1]
        self._others = [question for question, owners in asked.items() if owners is None]
        self._known: dict[tuple[bytes, tuple[bool, ...]], Needs] = {}
        self._last: Kept | None = None

    def kept(self, keep: Mask) -> Kept:
        """Return what a mask leaves of every field, counted once where several ask one after another."""
        if self._last is None or not np.array_equal(self._last.keep, keep):
            self._last = Kept(self.classes, keep.copy())
        return self._last

    def __call__(self, kept: Kept) -> Needs:
        """Return what ``needs`` does; the same object where it is the same."""
        stays = np.logical_or.reduceat(kept.keep[self._owners], self._starts) if self._starts.size else self._starts
        answers = (stays.tobytes(), tuple(self._answer(question, kept) for question in self._others))
        if answers not in self._known:
            if len(self._known) == self._MOST:
                self._known.pop(next(iter(self._known)))
            self._known[answers] = needs(self.graph, kept, self.constants)
        return self._known[answers]

    def holding(self, fields: Iterable[int]) -> list[Node]:
        """Return the nodes that read or make a value with one of these fields (their identities), last first."""
        places = {place for field in fields for place in self._places.get(field, ())}
        return [self.graph.nodes[place] for place in sorted(places, reverse=True)]

    @cached_property
    def _places(self) -> Mapping[int, Sequence[int]]:
        found: dict[int, list[int]] = {}
        for place, node in enumerate(self.graph.nodes):
            for name in filter(None, (*node.inputs, *node.outputs)):
                for field in self.classes.labels[name].fields:
                    found.setdefault(id(field), []).append(place)
        return found

    def _answer(self, question: _Question, kept: Kept) -> bool:
        name, axis = question
        return _kept_known(name, kept, self.constants) is not None if axis is None else _is_empty(name, axis, kept)


_Question = tuple[str, int | None]
"""A value, and the axis along which it may be empty; None: whether it is constant on what stays."""


def _questions(graph: Graph, classes: ChannelClasses, constants: Constants) -> Iterator[tuple[_Question, Ids | None]]:
    """Yield what ``needs`` asks of a mask, with the classes of which none may stay; None where it is not as simple."""
    for node in graph.nodes:
        if node.op == "concat":
            for name in node.inputs:
                yield (name, node.attrs["axis"]), _all_of(name, node.attrs["axis"], classes)
        elif any(True for _ in operands_to_cut(graph, node)):
            for name in (node.outputs[0], *node.inputs):
                yield (name, None), _varying_of(name, classes, constants)


def _all_of(name: str, axis: int, classes: ChannelClasses) -> Ids | None:
    fields = classes.labels[name].on(axis)
    if len(fields) > 1:
        return None
    return classes.class_of[fields[0].ravel()] if fields else _NONE


def _varying_of(name: str, classes: ChannelClasses, constants: Constants) -> Ids | None:
    """Return the classes of the channels on which a value varies; no classes where the mask has no say."""
    known, label = constants.known.get(name), classes.labels.get(name)
    if known is None or label is None or label.shape is None or len(axes := varying(known)) != 1:
        return _NONE
    fields = label.on(axes[0])
    if len(fields) > 1 or any(varying(field) != axes for field in fields):
        return None
    return classes.class_of[fields[0].ravel()][np.isnan(known.ravel())] if fields else _NONE


_NONE: Ids = np.zeros(0, dtype=np.int64)


def _has_effects(node: Node) -> bool:
    return node.op == "opaque" and not any(node.outputs)


def _is_empty(name: str, axis: int, kept: Kept) -> bool:
    mask = kept.along(name, axis)
    return mask is not None and not mask.any()


def _cut(graph: Graph, node: Node, kept: Kept, constants: Constants) -> tuple[int, np.ndarray[Any, Any]] | None:
    """Return (input index, constant) where one operand of a binary op is constant and the other spans the output."""
    if node.op not in BINARY:
        return None
    for index in operands_to_cut(graph, node):
        if _kept_known(node.outputs[0], kept, constants) is not None:
            return None  # what reads this node's output will cut there, if it can
        known = _kept_known(node.inputs[index], kept, constants)
        if known is not None:
            return index, known
    return None


def operands_to_cut(graph: Graph, node: Node) -> Iterator[int]:
    """Yield the places of a binary op's operands that may be cut if they are constant: the other spans the output."""
    if node.op not in BINARY or len(node.inputs) != 2 or node.attrs.get("inner"):
        return
    out, fixed = graph.values[node.outputs[0]].shape, graph.fixed_values()
    for index, name in enumerate(node.inputs):
        other = node.inputs[1 - index]
        if name in fixed or name in graph.inputs or other in graph.params:
            continue
        if out is not None and _spans(graph.shape(other), out):
            yield index


def _kept_known(name: str, kept: Kept, constants: Constants) -> np.ndarray[Any, Any] | None:
    """Return the constant that a value is on all its kept channels; None where some kept element varies.

    How many positions a map has may change from input to input: what differs along them is computed, not stored.
    """
    known = constants.known.get(name)
    label = kept.classes.labels.get(name)
    if known is None or label is None or label.shape is None or len(varying(known)) > 1:
        return None
    axes = varying(known)
    if axes and not label.on(axes[0]):
        return None
    if not np.isnan(known).any():
        return known
    mask = kept.along(name, axes[0]) if axes else None
    if mask is None:
        return None
    return known if not np.isnan(known.compress(mask, axis=axes[0])).any() else None


def _spans(shape: Shape | None, out: Shape) -> bool:
    """Tell whether an operand of ``shape`` alone gives the output its shape."""
    return shape is not None and len(shape) == len(out) and all(a == b for a, b in zip(shape, out, strict=True))
