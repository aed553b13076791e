"""Residuals: which operands of sums are worth an expansion (passes/rewrites/rewrite.py).

Owns the search for operands that are constant in part where the other one varies, and the cost rule: what an
operand no longer computes must outweigh putting its channels back in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from prunec.ir.arrays import Floats, Ids, Mask
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import varying
from prunec.ir.ops import BINARY
from prunec.ir.plan import Expansion
from prunec.passes.cost import class_cost, elements
from prunec.passes.reads import any_outside, channel_constants
from prunec.passes.rewrites.rewrite import expand
from prunec.passes.selection.select import EXACT, Facts, Selection, select
from prunec.passes.selection.widths import MultipleOf, step_for

Item = TypeVar("Item")

COPY_MACS = 100
"""What it costs to put one element of an operand back in its place, in multiply-accumulates of a convolution.

Measured in ONNX Runtime on one core: benchmarks/rewrites.py.
"""


def expansions_of(
    facts: Facts, analyse: Callable[[Graph], Facts], *, border: str = EXACT, multiple_of: MultipleOf = 1
) -> tuple[Facts, tuple[Expansion, ...]]:
    """Expand what pays.

    Args:
        facts: of the graph as it is.
        analyse: the passes, for a rewritten graph.
        border, multiple_of: as for ``select``, which tells what an expansion frees.

    Returns:
        The facts of the rewritten graph, and the expansions; ``facts`` and nothing where none pays.
    """
    return all_that_pay(facts, analyse, expand, _candidates, _paying, border, multiple_of)


def all_that_pay(
    facts: Facts,
    analyse: Callable[[Graph], Facts],
    rewrite: Callable[[Graph, tuple[Item, ...]], Graph],
    candidates: Callable[[Facts, Selection], Iterable[Item]],
    paying: Callable[[Graph, Facts, Selection, tuple[Item, ...], MultipleOf], Iterable[Item]],
    border: str,
    multiple_of: MultipleOf,
) -> tuple[Facts, tuple[Item, ...]]:
    """Carry out what could be rewritten, and leave out what does not pay until all that is left does.

    What one rewrite frees may hang on another one, so each is judged beside all that are left.

    Args:
        facts, analyse, border, multiple_of: as for ``expansions_of``.
        rewrite: a graph with some rewrites.
        candidates: the rewrites that are possible, given what may be removed.
        paying: of some, those (or the parts of them) that save more than they cost: takes the graph as it was, the
            facts with all of them, what may be removed then, and ``multiple_of``.
    """
    found = tuple(candidates(facts, select(facts, border=border, multiple_of=multiple_of)))
    while found:
        wide = analyse(rewrite(facts.graph, found))
        chosen = select(wide, border=border, multiple_of=multiple_of)
        left = tuple(paying(facts.graph, wide, chosen, found, multiple_of))
        if left == found:
            return wide, found
        found = left
    return facts, ()


# --- what could be expanded -----------------------------------------------------------------------------


def _candidates(facts: Facts, chosen: Selection) -> Iterator[Expansion]:
    """Yield the operands that hold constants which stay, though nothing but the op keeps them."""
    fixed = facts.graph.fixed_values() | set(facts.graph.inputs)
    for node in facts.graph.nodes:
        if node.op not in BINARY or len(node.inputs) != 2 or node.attrs.get("inner") or node.attrs.get("inserted"):
            continue
        if node.name not in chosen.wanted.nodes or fixed.intersection(node.inputs):
            continue
        for index in (0, 1):
            if (node.name, index) not in chosen.wanted.cuts:
                expansion = _expansion(facts, chosen, node, index)
                if expansion is not None:
                    yield expansion


def _expansion(facts: Facts, chosen: Selection, node: Node, index: int) -> Expansion | None:
    name = node.inputs[index]
    field, producer = channels_of(facts, name), facts.graph.producer(name)
    out = facts.graph.shape(node.outputs[0])
    if field is None or out is None or producer is None or producer.op == "dequantize":
        return None
    (axis,) = varying(field)
    if out[len(out) - field.ndim + axis] != field.size or not facts.graph.values[name].dtype.startswith("float"):
        return None
    constant = channel_constants(facts.constants, name, field).ravel()
    dead = np.broadcast_to(~any_outside(facts.liveness.of(name), field), field.shape).ravel()
    settled = (~np.isnan(constant) | dead) & chosen.keep[facts.classes.class_of[field.ravel()]]
    after = np.ones((1,) * (len(out) - field.ndim) + field.shape, dtype=np.int64)
    settled &= np.isnan(channel_constants(facts.constants, node.outputs[0], after)).ravel()
    positions = np.flatnonzero(settled)
    if positions.size in (0, field.size):
        return None
    values = np.nan_to_num(constant[positions])
    return Expansion(node.name, index, axis, tuple(positions.tolist()), tuple(values.tolist()))


def channels_of(facts: Facts, name: str) -> Ids | None:
    """Return a value's field of channels, where they lie on one axis and are no tokens or taps."""
    label = facts.classes.labels.get(name)
    if label is None or label.shape is None:
        return None
    fields = [field for field in label.fields if facts.classes.is_channel[facts.classes.class_of[field]].any()]
    if len(fields) != 1 or len(varying(fields[0])) != 1:
        return None
    (axis,) = varying(fields[0])
    return fields[0] if axis > 0 and len(label.on(axis)) == 1 else None


# --- what pays ------------------------------------------------------------------------------------------


def _paying(
    graph: Graph, wide: Facts, chosen: Selection, found: Sequence[Expansion], multiple_of: MultipleOf
) -> Iterator[Expansion]:
    """Yield the expansions, less what they do not free, that save more than they cost.

    Args:
        graph: as it was before them.
        wide, chosen: the facts with all of them, and what may be removed then.
    """
    nodes = {node.name: node for node in graph.nodes}
    operands = [nodes[item.node].inputs[item.index] for item in found]
    owners = [owners_at(wide, name, e.axis, e.positions) for name, e in zip(operands, found, strict=True)]
    for expansion, operand, gain in zip(found, operands, gains(wide, chosen, owners), strict=True):
        going = rounded(wide, chosen, operand, expansion.axis, gain > 0, multiple_of)
        if gain[going].sum() > COPY_MACS * elements(graph, operand):
            positions, constants = chosen_of(expansion.positions, going), chosen_of(expansion.constants, going)
            yield replace(expansion, positions=positions, constants=constants)


def owners_at(wide: Facts, value: str, axis: int, positions: Sequence[int]) -> Ids:
    """Return the class of some channels of a value, int64[positions]."""
    (field,) = wide.classes.labels[value].on(axis)
    return wide.classes.class_of[field.ravel()[list(positions)]]


def gains(wide: Facts, chosen: Selection, owners: Sequence[Ids]) -> list[Floats]:
    """Return the MACs that go with each channel of each rewrite, float64[positions]; 0 where the channel stays.

    Args:
        owners: per rewrite, the classes that it is to free; a class that needs several is shared out among them.
    """
    macs = np.where(chosen.keep, 0, class_cost(wide.graph, wide.classes).macs)
    times = np.zeros(wide.classes.num_classes)
    for own in owners:
        np.add.at(times, own, 1)
    return [macs[own] / times[own] for own in owners]


def rounded(wide: Facts, chosen: Selection, value: str, axis: int, free: Mask, multiple_of: MultipleOf) -> Mask:
    """Let a value keep a multiple of so many channels: of those that could go, the last stay."""
    (field,) = wide.classes.labels[value].on(axis)
    missing = -int(chosen.keep[wide.classes.class_of[field]].sum()) % step_for(field.size, multiple_of)
    at = np.flatnonzero(free)
    result = free.copy()
    result[at[at.size - min(missing, at.size) :]] = False
    return result


def chosen_of(values: tuple[Item, ...], which: Mask) -> tuple[Item, ...]:
    """Return the values where ``which`` is True."""
    return tuple(value for value, take in zip(values, which.tolist(), strict=True) if take)
