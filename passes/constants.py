"""Constants: which elements of which values do not depend on the network's input, and what they are.

Owns the forward sweep and its result. What each op does is in passes/rules/constants/table.py (a ReLU that provably
never fires is a row of it, one that never fires on data is prunec/data/calibration.py's), how values are kept in
passes/rules/arrays.py. passes/liveness.py reads the result next; together they are a
fixpoint after one round each: a constant never depends on an element that nothing reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.contractions import is_affine
from prunec.ir.graph import Graph, Node, Param
from prunec.ir.ops import MOVEMENTS, OPS
from prunec.passes.rules.arrays import MAX_ELEMENTS, lift, tidy
from prunec.passes.rules.constants.call import Call, Rule
from prunec.passes.rules.constants.table import CONSTANT_RULES
from prunec.passes.rules.weights import Weight, weight_of


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """What is known of a graph's values without running it.

    Args:
        known: per value name, a float array that broadcasts against the value (size 1 on axes along
            which nothing varies, and on open axes); NaN where the element depends on the input. A
            value of which nothing is known has no entry.
        params: the graph's parameters, known as they are.
        weights: per contraction (IR node name), its weight as [group, output, input, tap]. Missing
            where the weight is computed from the input.
        observed: per value name, bool of the shape of what is known: elements that no rule told, but a run
            over data (see ``constants``). They hold only while what computes them stays.
        replaced: names of the values that are to be replaced by constants.
    """

    known: Mapping[str, Array]
    params: Mapping[str, Param]
    weights: Mapping[str, Weight]
    observed: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))
    replaced: frozenset[str] = frozenset()

    def of(self, name: str) -> Array | None:
        """Return what is known of a value or parameter; None where that is nothing."""
        found = self.known.get(name)
        if found is not None:
            return found
        param = self.params.get(name)
        return None if param is None else _numbers(param.array)

    def by_rule(self, name: str) -> Array | None:
        """Return what is known of a value without the elements that were only observed."""
        found, seen = self.known.get(name), self.observed.get(name)
        return found if found is None or seen is None else np.where(seen, np.nan, found)


def constants(
    graph: Graph,
    rules: Mapping[str, Rule] = CONSTANT_RULES,
    observed: Mapping[str, Array] = MappingProxyType({}),
    replaced: Mapping[str, Array] = MappingProxyType({}),
) -> Constants:
    """Find every value, or part of one, that is the same for all inputs.

    Args:
        observed: by value name, what a run over data found constant: floats that broadcast against the value,
            NaN where it varies. Taken where no rule knows better, and carried on by the rules from there.
        replaced: by value name, what is to stand in its place, of the same kind: whatever computes it may go.

    Requires: nodes in topological order.
    Ensures:  each array broadcasts against its value's shape and holds no infinity; computed in float64.
    Cost: linear in nodes and weights. Compare sparse conditional constant propagation; per channel here.
    """
    known: dict[str, Array] = {}
    seen: dict[str, Array] = {}
    found = Constants(MappingProxyType(known), graph.params, {})
    weights: dict[str, Weight] = {}
    views: dict[tuple[Any, ...], Weight | None] = {}
    # NaN stands for "unknown", so invalid operations on it are everyday; overflow becomes unknown in tidy.
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            weight = _weight(graph, node, found, views)
            if weight is not None:
                weights[node.name] = weight
            known.update(_evaluate(graph, node, found, weight, rules))
            for name in observed.keys() & set(node.outputs) if observed else ():
                known[name], seen[name] = _merged(known.get(name), observed[name])
            known.update({name: replaced[name] for name in node.outputs if name in replaced})
    told = MappingProxyType(known), graph.params, MappingProxyType(weights)
    return Constants(*told, observed=MappingProxyType(seen), replaced=frozenset(replaced))


def _merged(known: Array | None, observed: Array) -> tuple[Array, Array]:
    """Return what is known with the observations where there was nothing, and bool: where that was."""
    told = lift(np.full((), np.nan) if known is None else known, observed.ndim)
    told, observed = np.broadcast_arrays(told, observed)
    added = np.isnan(told) & ~np.isnan(observed)
    return np.where(added, observed, told), added


def made_of_params(graph: Graph) -> frozenset[str]:
    """Return the values that are computed from parameters alone (weight standardisation and its like)."""
    return graph.fixed_values() - set(graph.params)


def _evaluate(
    graph: Graph, node: Node, found: Constants, weight: Weight | None, rules: Mapping[str, Rule]
) -> dict[str, Array]:
    """Return what is known of the node's outputs, by name."""
    out_shapes = tuple(graph.values[name].shape if name else None for name in node.outputs)
    if node.op not in OPS or not out_shapes or out_shapes[0] is None:
        return {}
    call = Call(
        node=node,
        known=tuple(found.of(name) if name else None for name in node.inputs),
        in_shapes=tuple(graph.shape(name) if name else None for name in node.inputs),
        out_shapes=out_shapes,
        out_dtype=graph.values[node.outputs[0]].dtype,
        weight=weight,
    )
    results: dict[str, Array] = {}
    for name, shape, array in zip(node.outputs, out_shapes, rules[node.op](call), strict=False):
        kept = None if array is None or shape is None else tidy(array, shape, moved=node.op in MOVEMENTS)
        if name and kept is not None:
            results[name] = kept
    return results


def _weight(graph: Graph, node: Node, found: Constants, views: dict[tuple[Any, ...], Weight | None]) -> Weight | None:
    """View the node's weight; nodes that share a parameter share the view."""
    if not is_affine(node) or len(node.inputs) < 2:
        return None
    name = node.inputs[1]
    key = (name, node.op, node.attrs.get("conv_groups"), node.attrs.get("transpose_b"))
    if key not in views:
        views[key] = _view(graph, node, found.of(name))
    return views[key]


def _view(graph: Graph, node: Node, array: Array | None) -> Weight | None:
    shape = graph.shape(node.inputs[1])
    if array is None or shape is None:
        return None
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) < len(shape):
        return None
    if array.shape != tuple(sizes):  # computed from parameters, and the same along some axes
        if np.prod(sizes, dtype=np.float64) > MAX_ELEMENTS:
            return None
        array = np.broadcast_to(array, sizes)
    return weight_of(node, array)


def _numbers(array: Array) -> Array | None:
    """Return an array that numpy can compute with; None for text and complex numbers."""
    if array.dtype.kind in "biuf":
        return array
    return array.astype(np.float32) if array.dtype.kind == "V" and array.dtype.itemsize <= 2 else None
