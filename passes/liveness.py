"""Liveness: which elements of which values can make a difference to some graph output.

Owns the backward sweep and its result. What each op reads is in passes/rules/liveness.py. Read
passes/constants.py first: an element that is constant needs nothing from what computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Graph, Node
from prunec.passes.constants import Constants, made_of_params
from prunec.passes.rules.arrays import MAX_ELEMENTS, lift
from prunec.passes.rules.liveness import LIVENESS_RULES, Rule, Step


@dataclass(frozen=True, slots=True, eq=False)
class Liveness:
    """What the graph's outputs can depend on.

    Args:
        live: per value name, a bool array that broadcasts against the value (size 1 on axes along
            which nothing varies); False where no output depends on the element, whatever it is. A
            value that is dead throughout has no entry. Parameters, and what is computed from them
            alone, are not followed: they have no entry, or one that does not say much.

    A live element may be constant; then what computes it is dead. A dead element that is not constant
    may be anything. One that is constant may not: its readers were taken to be constant because of it,
    so whoever removes it folds its value into those of them that stay.
    """

    live: Mapping[str, Array]

    def of(self, name: str) -> Array:
        """Return a bool array that broadcasts against the value; False where it is dead throughout."""
        return self.live.get(name, _NOTHING)


_NOTHING: Array = np.zeros((), dtype=np.bool_)
_NOTHING.flags.writeable = False


def liveness(graph: Graph, constants: Constants, rules: Mapping[str, Rule] = LIVENESS_RULES) -> Liveness:
    """Find every value, or part of one, that can be anything without a difference to an output.

    Requires: nodes in topological order; ``constants`` of the same graph.
    Ensures:  graph outputs are live; so is all that an opaque op with effects of its own reads.
    Cost: linear in nodes and weights.
    """
    live: dict[str, Array] = {}
    for name in graph.outputs:
        _read(graph, live, name, np.ones((), dtype=np.bool_))
    from_params = made_of_params(graph)
    for node in reversed(graph.nodes):
        if node.outputs and from_params.issuperset(node.outputs):
            continue  # it reads parameters, and what it computes may be as large as they are
        lives = tuple(live.get(name) for name in node.outputs)
        needs = tuple(_needed(read, constants.by_rule(name)) for name, read in zip(node.outputs, lives, strict=True))
        idle = all(need is None for need in needs) and not _has_effects(node)
        if idle and all(read is None for read in lives):
            continue
        for name, read in zip(node.inputs, () if idle else _reads(graph, node, needs, constants, rules), strict=False):
            if read is not None:
                _read(graph, live, name, read)
        if any(need is not read for need, read in zip(needs, lives, strict=True)):
            _read_constants(graph, node, lives, constants, rules, live)
    return Liveness(MappingProxyType(live))


def _reads(
    graph: Graph, node: Node, needs: tuple[Array | None, ...], constants: Constants, rules: Mapping[str, Rule]
) -> Sequence[Array | None]:
    """Return what the node reads of each input to compute ``needs``."""
    step = Step(
        node=node,
        needs=needs,
        known=tuple(constants.of(name) if name else None for name in node.inputs),
        in_shapes=tuple(graph.shape(name) if name else None for name in node.inputs),
        out_shapes=tuple(graph.values[name].shape if name else None for name in node.outputs),
        weight=constants.weights.get(node.name),
    )
    return rules["opaque" if _unranked(step) else node.op](step)


def _read_constants(
    graph: Graph,
    node: Node,
    lives: tuple[Array | None, ...],
    constants: Constants,
    rules: Mapping[str, Rule],
    live: dict[str, Array],
) -> None:
    """Keep alive the constant inputs that a constant output follows from.

    Such an output is what it is for any value of its other inputs, but only while those that were
    constant keep their value (or are folded into the weights that read them).
    """
    for name, read in zip(node.inputs, _reads(graph, node, lives, constants, rules), strict=True):
        known = constants.known.get(name)
        if read is None or known is None or name not in graph.values:
            continue
        rank = max(read.ndim, known.ndim)
        both = lift(read, rank) & ~np.isnan(lift(known, rank))
        if both.any():
            _read(graph, live, name, both)


def _needed(live: Array | None, known: Array | None) -> Array | None:
    """Return what an output's producer must really compute: live, and not constant by a rule.

    What was only observed to be constant is so because of all that its producer reads.
    """
    if live is None or known is None:
        return live
    need: Array = live & np.isnan(known)
    return need if need.any() else None


def _has_effects(node: Node) -> bool:
    return node.op == "opaque" and (bool(node.attrs.get("side_effects")) or not any(node.outputs))


def _unranked(step: Step) -> bool:
    """Tell whether an output's rank is unknown: then its need says nothing about axes."""
    return any(name and shape is None for name, shape in zip(step.node.outputs, step.out_shapes, strict=True))


def _read(graph: Graph, live: dict[str, Array], name: str, read: Array) -> None:
    """Add elements to what is live of a value."""
    value = graph.values.get(name)
    if value is None or not read.any():
        return
    read = lift(read, value.rank or 0)
    before = live.get(name)
    if before is not None and before.shape == read.shape:
        read = before | read
    elif before is not None:
        size = math.prod(np.broadcast_shapes(before.shape, read.shape))
        read = before | read if size <= MAX_ELEMENTS else np.ones((1,) * read.ndim, dtype=np.bool_)
    live[name] = read
