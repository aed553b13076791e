"""Streams: the residual sum that a contraction's output goes into.

Owns the walk from a contraction over BatchNorms and sums to the first op that is neither. Three things
follow from it: the contraction can correct an error that the sum's other operand already has; the BatchNorm's scale is
the weight of an error in the output; and in front of a ReLU an error below zero counts for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Floats
from prunec.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Where an output goes.

    Args:
        scale: float64[outputs]: what BatchNorms have multiplied it with at the end.
        shift: float64[outputs]: what they have added to it then.
        others: (value, sign, float64[outputs] scale when it is added) for each operand of the sums on the way.
        end: the value that comes out at the end.
        passes: (lowest, highest): all that reads the end takes any value below for the lowest, above for the highest
            (a ReLU: 0 and infinity), so errors out there do not count.
    """

    scale: Floats
    shift: Floats
    others: tuple[tuple[str, float, Floats], ...]
    end: str
    passes: tuple[float, float]


def stream(graph: Graph, node: Node, size: int) -> Stream:
    """Follow a contraction's output of ``size`` channels."""
    at, scale, shift = node.outputs[0], np.ones(size), np.zeros(size)
    others: list[tuple[str, float, Floats]] = []
    fixed = graph.fixed_values()
    while True:
        readers = graph.consumers(at)
        if len(readers) != 1 or at in graph.outputs:
            break
        reader = readers[0]
        if reader.op == "batch_norm" and reader.inputs[0] == at:
            factor = _factor(graph, reader, size)
            if factor is None:
                break
            scale, shift = scale * factor, (shift - _param(graph, reader, 3)) * factor + _param(graph, reader, 2)
        elif reader.op in ("add", "sub") and len(reader.inputs) == 2 and reader.inputs.count(at) == 1:
            other = reader.inputs[1 - reader.inputs.index(at)]
            if graph.shape(reader.outputs[0]) != graph.shape(at) or reader.attrs.get("alpha", 1) != 1:
                break
            if reader.op == "sub" and reader.inputs[1] == at:
                break
            if other not in fixed:
                if graph.shape(other) != graph.shape(at):
                    break
                others.append((other, -1.0 if reader.op == "sub" else 1.0, scale))
        elif reader.op != "identity":
            break
        at = reader.outputs[0]
    return Stream(scale, shift, tuple(others), at, _passed(graph, at))


def _passed(graph: Graph, value: str) -> tuple[float, float]:
    """Return what all readers of a value tell apart: the range outside of which they are flat."""
    readers = graph.consumers(value)
    if value in graph.outputs or not readers:
        return -math.inf, math.inf
    ranges = [_range(reader) for reader in readers]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _range(reader: Node) -> tuple[float, float]:
    """Return the range outside of which an op of one operand is flat."""
    if reader.op == "relu":
        return 0.0, math.inf
    if reader.op == "clip" and len(reader.inputs) == 1:
        low, high = (reader.attrs.get(name) for name in ("min", "max"))
        return -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return -math.inf, math.inf


def _factor(graph: Graph, norm: Node, size: int) -> Floats | None:
    """Return float64[size]: what a BatchNorm multiplies each channel with; None where that is not fixed."""
    names = (*norm.inputs, "", "", "", "")[1:5]
    if norm.attrs.get("training") or norm.attrs.get("axis", 1) != 1 or names[3] not in graph.params:
        return None
    if any(name and name not in graph.params for name in names):
        return None
    gamma = graph.params[names[0]].array if names[0] else np.ones(size)
    deviation = np.sqrt(graph.params[names[3]].array.astype(np.float64) + norm.attrs.get("eps", 1e-5))
    factor: Floats = gamma.astype(np.float64) / deviation
    return factor if factor.size == size and bool((factor != 0).all()) else None


def _param(graph: Graph, norm: Node, slot: int) -> Floats | float:
    """Return what a BatchNorm's parameter holds, 0 where it has none."""
    name = norm.inputs[slot] if len(norm.inputs) > slot else ""
    return graph.params[name].array.astype(np.float64) if name else 0.0
