"""Scores: how much each channel class matters, by a named criterion. Lossy pruning starts here.

Owns the criteria. A magnitude is a mean over the slices of a class, divided by the mean over its coupled
group, so that groups of different scale compare; saliencies compare as they are. Selection under a budget is
select.py's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from prunec.errors import BadInput
from prunec.ir.labels import Ids, Label, Member
from prunec.passes.groups import group_classes
from prunec.passes.selection.select import Facts

Floats = np.ndarray[Any, np.dtype[np.float64]]

Scorer = Callable[[Facts], Floats]
"""A criterion of the user's own: float64[num_classes], the lowest go first; infinite or NaN: none of its business."""


def score(
    facts: Facts, criterion: str | Scorer, *, seed: int = 0, saliency: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> Floats:
    """Return float64[num_classes]; the lowest scores go first.

    Criteria:
        l1: mean |w| of the weight slices that make the channel (Li et al., ICLR 2017).
        gamma: mean |gamma| of the BatchNorms on the channel (Liu et al., ICCV 2017); l1 where there is none.
        taylor: sum of the given saliency over all slices of the channel (Molchanov et al., CVPR 2019).
        random: a seeded draw, the baseline.
        a function: what it returns, see ``Scorer``; ``per_class`` makes that of a number per weight.

    Raises:
        BadInput: no such criterion, taylor without a saliency, or gamma where no BatchNorm is left; a function that
            raises, or returns something else than one number per class.
    """
    if not isinstance(criterion, str):
        return _asked(criterion, facts)
    if criterion == "random":
        return np.random.default_rng(seed).random(facts.classes.num_classes)
    if criterion == "taylor":
        if saliency is None:
            raise BadInput("the taylor criterion needs gradients", do="give data, or use l1, gamma or random")
        return _total_over(facts, _makers(facts) | _gammas(facts), saliency)
    magnitudes = _mean_over(facts, _makers(facts), _computed(facts))
    if criterion == "gamma":
        if not _gammas(facts):
            raise BadInput(
                "the gamma criterion needs BatchNorms, and the network has none",
                why="exporters fold them into the convolutions before them",
                do="use --criterion l1 or taylor, or export with BatchNorms kept (torch.onnx.export: "
                "training=TrainingMode.PRESERVE, do_constant_folding=False)",
            )
        by_gamma = _mean_over(facts, _gammas(facts))
        magnitudes = np.where(np.isnan(by_gamma), magnitudes, by_gamma)
    elif criterion != "l1":
        raise BadInput(f"there is no criterion {criterion!r}", do="use l1, gamma, taylor or random")
    return _per_group(facts, magnitudes)


def per_class(facts: Facts, importance: Mapping[str, np.ndarray[Any, Any]]) -> Floats:
    """Return the sum of an importance over the weights and gammas that make each class; infinite where none does.

    Args:
        importance: parameter name -> a number per element, of the parameter's shape.
    """
    return _total_over(facts, _makers(facts) | _gammas(facts), importance)


def name_of(criterion: str | Scorer) -> str:
    """Return what reports call a criterion."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)


def _asked(criterion: Scorer, facts: Facts) -> Floats:
    name = name_of(criterion)
    try:
        found = np.asarray(criterion(facts), dtype=np.float64)
    except Exception as error:
        raise BadInput(f"the criterion {name} raised {type(error).__name__}: {error}", do="mend it") from error
    if found.shape != (facts.classes.num_classes,):
        raise BadInput(
            f"the criterion {name} returned an array of shape {list(found.shape)}",
            why=f"the network has {facts.classes.num_classes} channel classes, and each needs one number",
            do="return prunec.passes.selection.scores.per_class(facts, importance), or an array of that size",
        )
    return np.where(np.isnan(found), np.inf, found)


def _makers(facts: Facts) -> set[tuple[str, int]]:
    """Return (parameter, axis) of the weights whose output axis makes channels."""
    found = set()
    by_first = {int(member.ids[0]): member for member in facts.classes.members}
    for node in facts.graph.nodes:
        if node.op == "conv" or (node.op == "conv_transpose" and node.attrs["conv_groups"] > 1):
            found.add((node.inputs[1], 0))
        elif node.op == "conv_transpose":
            found.add((node.inputs[1], 1))
        elif node.op == "matmul" and node.inputs[1] not in facts.graph.params and _is_matrix(facts, node.inputs[1]):
            found.add((node.inputs[1], 0 if node.attrs.get("transpose_b") else 1))
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


def _gammas(facts: Facts) -> set[tuple[str, int]]:
    return {(node.inputs[1], 0) for node in facts.graph.nodes if node.op == "batch_norm" and len(node.inputs) > 1}


def _mean_over(facts: Facts, members: set[tuple[str, int]], further: Iterable[tuple[Ids, Floats]] = ()) -> Floats:
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
            magnitude = np.abs(facts.graph.params[member.param].array.astype(np.float64))
            yield facts.classes.class_of[member.ids], magnitude.mean(axis=_others(magnitude.ndim, member.axis))


def _computed(facts: Facts) -> Iterator[tuple[Ids, Floats]]:
    """Yield the same for weights that are computed from parameters: integers with scales, standardised weights."""
    for name, axis in sorted(_makers(facts)):
        known, label = facts.constants.known.get(name), facts.classes.labels.get(name)
        shape = facts.graph.shape(name)
        if name in facts.graph.params or known is None or label is None or not label.on(axis) or shape is None:
            continue
        magnitude = np.abs(known).mean(axis=tuple(other for other in range(known.ndim) if other != axis))
        ids = label.on(axis)[0].ravel()
        if not np.isnan(magnitude).any() and ids.size == shape[axis]:
            yield facts.classes.class_of[ids], np.broadcast_to(magnitude, ids.shape)


def _per_group(facts: Facts, values: Floats) -> Floats:
    result = np.where(np.isnan(values), np.inf, values)
    for group in group_classes(facts.classes):
        members = np.asarray(group)
        known = values[members][~np.isnan(values[members])]
        scale = known.mean() if known.size else 0.0
        if scale > 0:
            result[members] = values[members] / scale
    return np.where(np.isnan(result), np.inf, result)
