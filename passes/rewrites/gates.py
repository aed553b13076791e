"""Gates: which constants times an input-dependent gate are worth a fold past the product (passes/rewrites/rewrite.py).

Owns the search for squeeze-excite products with one constant operand that only convolutions without padding read,
and the cost rule: what goes with the product's channels must outweigh the convolution on the gate and
adding its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph, Node
from prunec.ir.plan import GateFold
from prunec.passes.cost import elements
from prunec.passes.integers import is_integer
from prunec.passes.reads import channel_constants
from prunec.passes.rewrites.residuals import all_that_pay, channels_of, chosen_of, gains, owners_at, rounded
from prunec.passes.rewrites.rewrite import fold_gates
from prunec.passes.selection.select import EXACT, Facts, Selection
from prunec.passes.selection.widths import MultipleOf

ADD_MACS = 50
"""What it costs to add a number per channel to one element of a map, in multiply-accumulates of a convolution."""


def gate_folds_of(
    facts: Facts, analyse: Callable[[Graph], Facts], *, border: str = EXACT, multiple_of: MultipleOf = 1
) -> tuple[Facts, tuple[GateFold, ...]]:
    """Fold what pays; as ``expansions_of`` in residuals.py."""
    return all_that_pay(facts, analyse, fold_gates, _candidates, _paying, border, multiple_of)


def _candidates(facts: Facts, chosen: Selection) -> Iterator[GateFold]:
    """Yield the products of a gate and a map with constants that stay."""
    fixed = facts.graph.fixed_values() | set(facts.graph.inputs)
    for node in facts.graph.nodes:
        if node.op != "mul" or len(node.inputs) != 2 or node.attrs.get("inner") or fixed.intersection(node.inputs):
            continue
        if node.name not in chosen.wanted.nodes or not _only_mixed(facts, node.outputs[0]):
            continue
        for index in (0, 1):
            fold = _fold(facts, chosen, node, index)
            if fold is not None:
                yield fold
                break


def _only_mixed(facts: Facts, value: str) -> bool:
    """Tell whether all that reads a value is a convolution that sums it up with fixed weights, borders included."""
    graph = facts.graph
    readers = graph.consumers(value)
    return bool(readers) and value not in graph.outputs and all(_mixes(facts, node, value) for node in readers)


def _mixes(facts: Facts, node: Node, value: str) -> bool:
    if node.op != "conv" or node.inputs[0] != value or value in node.inputs[1:] or is_integer(facts.graph, node):
        return False
    plain = node.attrs["conv_groups"] == 1 and not any(node.attrs["pads"]) and not node.attrs.get("bias_type")
    weight = facts.graph.params.get(node.inputs[1])
    return plain and weight is not None and weight.array.dtype.kind == "f"


def _fold(facts: Facts, chosen: Selection, node: Node, index: int) -> GateFold | None:
    gate, other = node.inputs[index], node.inputs[1 - index]
    field, gate_field = channels_of(facts, other), channels_of(facts, gate)
    if field is None or gate_field is None or field.shape != gate_field.shape or not _is_gate(facts, node, gate):
        return None
    constant = channel_constants(facts.constants, other, field).ravel()
    varies = np.isnan(channel_constants(facts.constants, gate, field).ravel())
    varies &= chosen.keep[facts.classes.class_of[field.ravel()]]
    given = varies & ~np.isnan(constant) & (constant != 0)
    if not given.any() or given[varies].all():
        return None  # with nothing of the gate left to read, the product would be another one
    positions = np.flatnonzero(given)
    readers = tuple(reader.name for reader in facts.graph.consumers(node.outputs[0]))
    return GateFold(node.name, index, readers, tuple(positions.tolist()), tuple(constant[positions].tolist()))


def _is_gate(facts: Facts, node: Node, name: str) -> bool:
    """Tell whether an operand of a product has one number per channel, of a map that has more."""
    shape, whole = facts.graph.shape(name), facts.graph.shape(node.outputs[0])
    if shape is None or whole is None or len(shape) != len(whole) or len(shape) < 3 or set(shape[2:]) != {1}:
        return False
    return shape[1] == whole[1] and all(facts.graph.values[n].dtype.startswith("float") for n in node.inputs)


def _paying(
    graph: Graph, wide: Facts, chosen: Selection, found: Sequence[GateFold], multiple_of: MultipleOf
) -> Iterator[GateFold]:
    """Yield the folds, less what they do not free, that save more than they cost; as in residuals.py."""
    nodes = {node.name: node for node in graph.nodes}
    others = [nodes[fold.product].inputs[1 - fold.gate] for fold in found]
    owners = [owners_at(wide, name, 1, fold.positions) for name, fold in zip(others, found, strict=True)]
    for fold, other, gain in zip(found, others, gains(wide, chosen, owners), strict=True):
        going: Mask = rounded(wide, chosen, other, 1, gain > 0, multiple_of)
        maps = [nodes[name].outputs[0] for name in fold.readers]
        channels = [graph.params[nodes[name].inputs[1]].shape[0] for name in fold.readers]
        cost = ADD_MACS * sum(elements(graph, name) for name in maps) + int(going.sum()) * sum(channels)
        if gain[going].sum() > cost:
            positions, constants = chosen_of(fold.positions, going), chosen_of(fold.constants, going)
            yield replace(fold, positions=positions, constants=constants)
