"""Means: the mean of each channel as the BatchNorm in front of it implies it, without any data.

A BatchNorm's output has mean beta and standard deviation |gamma| per channel. Assumed to be Gaussian, that gives the
mean behind any elementwise op (behind a ReLU: that of a rectified Gaussian). A removed channel's mean is folded into
the biases of its readers, which is better than treating it as zero. Owns the walk from BatchNorms to reads,
and the folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunec.ir.arrays import Floats
from prunec.ir.graph import Graph, Node
from prunec.ir.ops import UNARY
from prunec.ir.plan import Fold, PrunePlan
from prunec.passes.lowering.lower import keep_mask
from prunec.passes.reads import Read, is_flat
from prunec.passes.rules.numeric import unary
from prunec.passes.selection.carriers import bias_target
from prunec.passes.selection.select import Facts

Moments = tuple[Floats, Floats]
"""Mean and deviation per channel of axis 1, float64[C] each."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_SAME = ("identity", "avg_pool", "resize", "cast")


def mean_folds(facts: Facts, plan: PrunePlan) -> tuple[Fold, ...]:
    """Return folds of the means of channels that go, wherever a bias or running mean can take them.

    Channels whose constants the plan folds already, and those of which no BatchNorm tells, are left out.
    """
    known = moments(facts.graph)
    keep = keep_mask(facts.graph, facts.classes, plan)
    taken: dict[str, set[int]] = {}
    for fold in plan.folds:
        taken.setdefault(fold.node, set()).update(fold.positions)
    removed = {(item.node, item.index) for item in plan.constant_inputs}
    result = []
    for read in facts.reads:
        if (read.node.name, read.index) not in removed:
            made = _fold(facts, read, known, keep, taken.get(read.node.name, set()))
            result += [made] if made is not None else []
    return tuple(result)


def _fold(
    facts: Facts, read: Read, known: Mapping[str, Moments], keep: np.ndarray[Any, Any], taken: set[int]
) -> Fold | None:
    found = known.get(read.node.inputs[read.index])
    if found is None or not read.absorbs or not is_flat(read.ids) or read.ids.size != found[0].size:
        return None
    kind, target = bias_target(facts.graph, read.node)
    if not target or read.node.name not in facts.constants.weights:
        return None
    gone = ~keep[facts.classes.class_of[read.ids.ravel()]] & np.isnan(read.constant.ravel()) & ~read.dead.ravel()
    at = [place for place in np.flatnonzero(gone & np.isfinite(found[0])).tolist() if place not in taken]
    if not at:
        return None
    return Fold(read.node.name, kind, tuple(at), tuple(found[0][at].tolist()), target)


def moments(graph: Graph) -> Mapping[str, Moments]:
    """Return mean and deviation per channel of every value of which BatchNorms tell them."""
    known: dict[str, Moments] = {}
    for node in graph.nodes:
        found = _of(graph, node, known)
        if found is not None:
            known[node.outputs[0]] = found
    return known


def _of(graph: Graph, node: Node, known: Mapping[str, Moments]) -> Moments | None:
    if node.op == "batch_norm":
        return _normalised(graph, node)
    ins = [known.get(name) for name in node.inputs]
    if not ins or ins[0] is None:
        return None
    if node.op in _SAME or (node.op == "reduce" and node.attrs["kind"] == "mean" and 1 not in node.attrs["axes"]):
        return ins[0]
    if node.op in UNARY:
        return _through(node, ins[0])
    other = ins[1] if node.op == "add" and len(ins) == 2 and node.attrs.get("alpha", 1) == 1 else None
    if other is not None and ins[0][0].size == other[0].size:
        return ins[0][0] + other[0], np.hypot(ins[0][1], other[1])
    if node.op == "concat" and node.attrs["axis"] == 1 and all(part is not None for part in ins):
        parts = [part for part in ins if part is not None]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    return None


def _normalised(graph: Graph, node: Node) -> Moments | None:
    gamma, beta = (graph.params.get(name) for name in (*node.inputs, "", "")[1:3])
    if node.attrs.get("training") or node.attrs.get("axis", 1) != 1 or gamma is None or beta is None:
        return None
    return beta.array.astype(np.float64), np.abs(gamma.array.astype(np.float64))


def _through(node: Node, found: Moments) -> Moments | None:
    """Return mean and deviation behind an elementwise op, by Gauss-Hermite quadrature."""
    points = found[0][:, None] + found[1][:, None] * _NODES
    with np.errstate(all="ignore"):
        values = unary(node.op, points, node.attrs)
    if not np.isfinite(values).all():
        return None
    share = _WEIGHTS / _WEIGHTS.sum()
    mean = values @ share
    return mean, np.sqrt(np.maximum(0.0, np.square(values - mean[:, None]) @ share))
