"""Scores: numbers per weight, and magnitudes of weights, made into one number per channel class.

Owns that arithmetic; which criterion is made of what is criteria.py's. A magnitude is a mean over the slices of a
class, divided by the mean over its coupled group, so that groups of different scale compare; saliencies compare as
they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from prunec.ir.arrays import Floats, Ids
from prunec.ir.contractions import conv_groups, is_spatial, out_axis
from prunec.ir.labels import Label, Member
from prunec.passes.groups import group_classes
from prunec.passes.selection.select import Facts


def per_class(facts: Facts, importance: Mapping[str, np.ndarray[Any, Any]]) -> Floats:
    """Return the sum of an importance over the weights and gammas that make each class; infinite where none does.

    Args:
        importance: parameter name -> a number per element, of the parameter's shape.
    """
    return _total_over(facts, makers(facts) | gammas(facts), importance)


def makers(facts: Facts) -> set[tuple[str, int]]:
    """Return (parameter, axis) of the weights whose output axis makes channels."""
    found = set()
    by_first = {int(member.ids[0]): member for member in facts.classes.members}
    for node in facts.graph.nodes:
        if is_spatial(node):
            found.add((node.inputs[1], out_axis(node) if conv_groups(node) == 1 else 0))  # groups share axis 1
        elif node.op == "matmul" and node.inputs[1] not in facts.graph.params and _is_matrix(facts, node.inputs[1]):
            found.add((node.inputs[1], out_axis(node)))
        elif node.op == "matmul":
            found.update(_made(facts.classes.labels[node.outputs[0]], by_first))
    return found


def _is_matrix(facts: Facts, name: str) -> bool:
    return len(facts.graph.shape(name) or ()) == 2


def _made(label: Label, by_first: Mapping[int, Member]) -> Iterator[tuple[str, int]]:
    """Yield the parameter axes whose ids, all of them and no others, a matrix product's output carries.

    Args:
        by_first: the parameter axes by their first id, which no other has.
    """
    for field in label.fields:
        member = by_first.get(int(field.flat[0])) if field.size else None
        if member is not None and np.array_equal(field.ravel(), member.ids):
            yield member.param, member.axis


def gammas(facts: Facts) -> set[tuple[str, int]]:
    """Return (parameter, axis) of the scales of BatchNorms."""
    return {(node.inputs[1], 0) for node in facts.graph.nodes if node.op == "batch_norm" and len(node.inputs) > 1}


def mean_over(facts: Facts, members: set[tuple[str, int]], further: Iterable[tuple[Ids, Floats]] = ()) -> Floats:
    """Return the mean magnitude of each class over the chosen parameter axes and ``further`` slices; NaN for none."""
    total = np.zeros(facts.classes.num_classes)
    count = np.zeros(facts.classes.num_classes)
    for owners, means in itertools.chain(_slices(facts, members), further):
        np.add.at(total, owners, means)
        np.add.at(count, owners, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _total_over(facts: Facts, members: set[tuple[str, int]], saliency: Mapping[str, np.ndarray[Any, Any]]) -> Floats:
    """Return the sum of a saliency over all slices of each class; infinite where it has none."""
    total = np.full(facts.classes.num_classes, np.inf)
    for member in facts.classes.members:
        found = saliency.get(member.param)
        if (member.param, member.axis) not in members or found is None:
            continue
        owners = facts.classes.class_of[member.ids]
        total[owners] = np.where(np.isinf(total[owners]), 0.0, total[owners])
        np.add.at(total, owners, found.sum(axis=_others(found.ndim, member.axis)))
    return total


def _others(rank: int, axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(rank) if other != axis)


def _slices(facts: Facts, members: set[tuple[str, int]]) -> Iterator[tuple[Ids, Floats]]:
    """Yield the classes along each chosen parameter axis, and the mean magnitude of each slice."""
    for member in facts.classes.members:
        if (member.param, member.axis) in members:
            yield facts.classes.class_of[member.ids], _magnitudes(facts.graph.params[member.param].array, member.axis)


_AT_ONCE = 1 << 16
"""Elements that are summed up at a time: in double precision they stay in the cache."""


def _magnitudes(array: np.ndarray[Any, Any], axis: int) -> Floats:
    """Return the mean magnitude of each slice along an axis."""
    others = _others(array.ndim, axis)
    if axis or not array.size or not array.flags.c_contiguous:
        return np.abs(array.astype(np.float64)).mean(axis=others)  # type: ignore[no-any-return]  # of a slice each
    rows = max(1, _AT_ONCE * len(array) // array.size)
    parts = (array[at : at + rows].astype(np.float64) for at in range(0, len(array), rows))
    return np.concatenate([np.abs(part, out=part).mean(axis=others) for part in parts])


def computed(facts: Facts) -> Iterator[tuple[Ids, Floats]]:
    """Yield the same for weights that are computed from parameters: integers with scales, standardised weights."""
    for name, axis in sorted(makers(facts)):
        known, label = facts.constants.known.get(name), facts.classes.labels.get(name)
        shape = facts.graph.shape(name)
        if name in facts.graph.params or known is None or label is None or not label.on(axis) or shape is None:
            continue
        magnitude = np.abs(known).mean(axis=tuple(other for other in range(known.ndim) if other != axis))
        ids = label.on(axis)[0].ravel()
        if not np.isnan(magnitude).any() and ids.size == shape[axis]:
            yield facts.classes.class_of[ids], np.broadcast_to(magnitude, ids.shape)


def per_group(facts: Facts, values: Floats) -> Floats:
    """Return values of classes over the mean of their coupled group; infinite where there is none."""
    result = np.where(np.isnan(values), np.inf, values)
    for group in group_classes(facts.classes):
        members = np.asarray(group)
        known = values[members][~np.isnan(values[members])]
        scale = known.mean() if known.size else 0.0
        if scale > 0:
            result[members] = values[members] / scale
    return np.where(np.isnan(result), np.inf, result)
