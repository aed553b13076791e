"""Graph, ChannelClasses -> Gammas: which BatchNorm scales decide over which channel classes.

Owns the question "if these gammas were zero, would the class be constant wherever it is read?". What
training does with the answer is in prunec/training/sparsity/sparsify.py; see scaling.py for γ–W rescaling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunec.ir.arrays import Ids, Mask
from prunec.ir.contractions import is_depthwise
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses
from prunec.ir.ops import CONTRACTIONS, MIXING
from prunec.passes.sparsity.flow import carried_classes, look_up

Grades = np.ndarray[Any, np.dtype[np.int8]]

VARIES, ZERO_ONLY, CONSTANT = range(3)
"""What a class is where it is read if its gammas are zero: varying, constant provided that it is zero, constant."""


@dataclass(frozen=True, slots=True, eq=False)
class Gamma:
    """One BatchNorm scale.

    Args:
        param, beta: parameter names; ``beta`` is "" where there is none.
        node: the BatchNorm, the first of them where several share the parameter.
        classes: int64[C], the class of each channel; 0 where it has none.
        decides: bool[C], False where another BatchNorm stands between this one and every contraction
            that reads the class (DenseNet's first norm, the norm before a depthwise convolution): this
            gamma need not be zero for the class to go.
        prunable: bool[C], nothing pins the class, this gamma decides, and with all deciding gammas of the
            class at zero every contraction that reads it sees a constant.
        gated: bool[C], some contraction does so only where the constant is zero: it reads the product of the
            class with a computed gate (squeeze-excite).
    """

    param: str
    beta: str
    node: Node
    classes: Ids
    decides: Mask
    prunable: Mask
    gated: Mask


def gammas(graph: Graph, classes: ChannelClasses) -> tuple[Gamma, ...]:
    """List the BatchNorm scales of ``graph``, in graph order.

    Only scales that are parameters of the model count: a computed one cannot be trained to zero. A class
    whose product with a computed gate is read (squeeze-excite) counts as prunable: it goes when the
    constant that a zero gamma leaves is itself zero.

    Ensures: all deciding gammas of a class agree on ``prunable``.
    """
    carried = carried_classes(graph, classes)
    demanded = _demanded(graph, carried)
    reads = _lowest_reads(graph, classes, carried)
    found: dict[str, Gamma] = {}
    for node in graph.nodes:
        if not has_gamma(graph, node):
            continue
        label = classes.labels[node.inputs[1]]
        fields = label.on(0)
        size = graph.params[node.inputs[1]].array.size
        own = classes.class_of[fields[0].ravel()] if fields else np.zeros(size, dtype=np.int64)
        out = node.outputs[0]
        decides = look_up(demanded[out], carried[out], own, False)
        before = found.get(node.inputs[1])
        if before is not None:
            decides = decides | before.decides
        free = ~classes.pinned[own] & classes.is_channel[own] & (reads[own] != VARIES)
        first = node if before is None else before.node
        beta = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] in graph.params else ""
        found[node.inputs[1]] = Gamma(
            node.inputs[1], beta, first, own, decides, decides & free, reads[own] == ZERO_ONLY
        )
    return tuple(found.values())


def has_gamma(graph: Graph, node: Node) -> bool:
    """Tell whether ``node`` is a BatchNorm whose scale is a parameter of the model."""
    if node.op != "batch_norm" or len(node.inputs) < 2:
        return False
    param = graph.params.get(node.inputs[1])
    return param is not None and not param.literal


def residual_classes(graph: Graph, classes: ChannelClasses) -> Mask:
    """Return bool[num_classes], True for classes that a sum of two computed values runs through."""
    carried = carried_classes(graph, classes)
    found = np.zeros(classes.num_classes, dtype=bool)
    for node in graph.nodes:
        operands = [name for name in node.inputs if name and name not in graph.params]
        if node.op in ("add", "sub") and len(operands) == 2 and operands[0] != operands[1]:
            found[np.intersect1d(carried[operands[0]], carried[operands[1]])] = True
    return found


def gated_classes(found: Sequence[Gamma], classes: ChannelClasses) -> Mask:
    """Return bool[num_classes], True for classes that are constant somewhere only where the constant is zero."""
    gated = np.zeros(classes.num_classes, dtype=bool)
    for gamma in found:
        gated[gamma.classes[gamma.gated & gamma.prunable]] = True
    return gated


def _demanded(graph: Graph, carried: Mapping[str, Ids]) -> dict[str, Mask]:
    """Return, for each value's classes, whether a contraction reads them with no BatchNorm in between."""
    demanded = {name: np.zeros(carried[name].shape, dtype=bool) for name in graph.values}
    for name in graph.outputs:
        if name in demanded:
            demanded[name][:] = True
    for node in reversed(graph.nodes):
        if has_gamma(graph, node):
            continue  # what it reads is behind it
        ends = node.op in CONTRACTIONS and not is_depthwise(graph, node)
        for name in node.inputs:
            if name not in demanded:
                continue
            for out in node.outputs:
                if out and not ends:
                    demanded[name] |= look_up(demanded[out], carried[out], carried[name], False)
            if ends:
                demanded[name][:] = True
    return demanded


def _lowest_reads(graph: Graph, classes: ChannelClasses, carried: Mapping[str, Ids]) -> Grades:
    """Return int8[num_classes]: the worst that a contraction sees of each class if the gammas before it are zero."""
    grades: dict[str, Grades] = {name: _all(VARIES, carried[name]) for name in graph.inputs}
    grades.update({name: _all(CONSTANT, carried[name]) for name in (*graph.params, "")})
    lowest = np.full(classes.num_classes, CONSTANT, dtype=np.int8)
    for node in graph.nodes:
        if node.op in CONTRACTIONS and not is_depthwise(graph, node):
            for name in node.inputs:
                if name in graph.values:
                    np.minimum.at(lowest, carried[name], grades[name])
        for out in node.outputs:
            if out:
                grades[out] = _grade(graph, node, carried[out], carried, grades)
    return lowest


def _all(grade: int, want: Ids) -> Grades:
    return np.full(want.shape, grade, dtype=np.int8)


def _grade(graph: Graph, node: Node, want: Ids, carried: Mapping[str, Ids], grades: Mapping[str, Grades]) -> Grades:
    """Return, for the classes of one output, what they are if gammas are zero."""
    if has_gamma(graph, node):
        return _all(CONSTANT, want)
    if node.op in CONTRACTIONS and not (is_depthwise(graph, node) and not any(node.attrs["pads"])):
        return _all(VARIES, want)
    if node.op in MIXING:
        return _all(VARIES, want)
    merges = node.op in ("concat", "scatter_slice")  # operands that lack the class hold other positions
    parts = []
    for name in node.inputs:
        if name:
            absent = CONSTANT if merges or name in graph.params else VARIES
            parts.append(look_up(grades[name], carried[name], want, absent))
    if not parts:
        return _all(CONSTANT, want)
    result: Grades = np.minimum.reduce(parts)
    if node.op == "mul":
        # Zero times a gate is zero whatever the gate is; a constant that is not zero keeps the class alive.
        result = np.maximum(result, np.minimum(np.maximum.reduce(parts), ZERO_ONLY)).astype(np.int8)
    if node.op == "pad":
        inner = look_up(np.ones(carried[node.inputs[0]].shape, dtype=bool), carried[node.inputs[0]], want, False)
        result = np.where(inner, result, CONSTANT).astype(np.int8)  # what the padding added
    return result
