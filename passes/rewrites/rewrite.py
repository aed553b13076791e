"""Rewrites of a graph that a plan asks for, before anything is removed: expansions and gate folds.

Owns the new nodes. An *expansion*: a residual sum ties channel k of all that is added up; where one branch is
constant in k and the stream is not, the tie keeps that branch computing a constant. The rewrite cuts it: the
branch's other channels are padded, one Gather puts them in their places, and the constants are added. A *gate
fold*: a constant times an input-dependent gate is not constant, but the gate times a constant; a small convolution on
the gate takes it to what reads the product, where the gate is zero from then on. To every pass the result is a
network that was written this way. What is worth it is residuals.py's and gates.py's choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.errors import BadPlan
from prunec.ir.arrays import Array
from prunec.ir.graph import Graph, Node, Param, Shape, Value
from prunec.ir.plan import Expansion, GateFold, PrunePlan
from prunec.passes.lowering.bias_folds import numpy_dtype


def rewritten(graph: Graph, plan: PrunePlan) -> Graph:
    """Return the graph that a plan was made for.

    Raises:
        BadPlan: the plan names nodes or channels that the graph does not have.
    """
    return expand(fold_gates(graph, plan.gate_folds), plan.expansions)


def expand(graph: Graph, expansions: Sequence[Expansion]) -> Graph:
    """Return the graph with channels of operands cut off and put back as constants.

    Ensures: the values that there were are computed as before, as long as those channels are what the
        expansions say.

    Raises:
        BadPlan: an expansion names a node or channels that the graph does not have.
    """
    at: dict[str, list[Expansion]] = {}
    for expansion in expansions:
        at.setdefault(expansion.node, []).append(expansion)
    return _Rewrite(graph).run(at, {}) if expansions else graph


def fold_gates(graph: Graph, folds: Sequence[GateFold]) -> Graph:
    """Return the graph with constants times a gate taken past the product.

    Ensures: graph outputs are computed as before, as long as the other operands are what the folds say.

    Raises:
        BadPlan: a fold names nodes or channels that the graph does not have.
    """
    gates: dict[str, list[Expansion]] = {}
    readers: dict[str, list[GateFold]] = {}
    for fold in folds:
        zeros = (0.0,) * len(fold.positions)
        gates.setdefault(fold.product, []).append(Expansion(fold.product, fold.gate, 1, fold.positions, zeros))
        for name in fold.readers:
            readers.setdefault(name, []).append(fold)
    return _Rewrite(graph).run(gates, readers) if folds else graph


def _misfit(node: str, why: str) -> BadPlan:
    return BadPlan(
        f"the plan rewrites the network at {node}",
        why=why,
        do="apply the plan to the architecture that it was made for",
    )


class _Rewrite:
    """Collects the nodes, values and parameters of the new graph."""

    def __init__(self, graph: Graph) -> None:
        self.old = graph
        self.by_name = {node.name: node for node in graph.nodes}
        self.nodes: list[Node] = []
        self.pending: dict[str, list[str]] = {}
        """Node name -> values to add to its result."""
        self.values: dict[str, Value] = dict(graph.values)
        self.params: dict[str, Param] = dict(graph.params)

    def run(self, expansions: Mapping[str, Sequence[Expansion]], folds: Mapping[str, Sequence[GateFold]]) -> Graph:
        missing = (expansions.keys() | folds.keys()) - self.by_name.keys()
        if missing:
            raise _misfit(min(missing), "the model has no such node")
        for node in self.old.nodes:
            reader = node
            for expansion in expansions.get(node.name, ()):
                reader = self._operand(reader, expansion)
            for fold in folds.get(node.name, ()):
                self._past_product(reader, fold)
            self._finish(reader)
        old = self.old
        values, params = MappingProxyType(self.values), MappingProxyType(self.params)
        return Graph(tuple(self.nodes), values, params, old.inputs, old.outputs, old.name, old.frontend)

    def _channels(self, node: str, source: str, axis: int, positions: Sequence[int]) -> tuple[Shape, int, Array]:
        """Return the shape of a value, its number of channels, and the positions as an array."""
        shape, at = self.old.shape(source), np.asarray(positions, dtype=np.int64)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        if shape is None or not isinstance(size, int) or (at >= size).any() or source not in self.values:
            raise _misfit(node, "its operand has other channels")
        return shape, size, at

    def _operand(self, node: Node, expansion: Expansion) -> Node:
        """Add what puts an operand together; return the node that reads it from there."""
        source, axis = node.inputs[expansion.index] if expansion.index < len(node.inputs) else "", expansion.axis
        shape, size, positions = self._channels(node.name, source, axis, expansion.positions)
        pads = [0] * (2 * len(shape))
        pads[len(shape) + axis] = positions.size
        indices = np.arange(size)
        indices[positions] = size + np.arange(positions.size)
        base = f"{source}_expanded{expansion.index or ''}"
        padded = _resized(shape, axis, size + positions.size)
        value = self._add(node, "pad", source, f"{base}_padded", padded, {"pads": pads, "mode": "constant", "value": 0})
        value = self._add(node, "gather", value, base, shape, {"axis": axis, "indices": indices})
        if any(expansion.constants):
            constants = np.zeros(size)
            constants[positions] = expansion.constants
            along = constants.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            stored = self._store(f"{base}_constants", along.astype(numpy_dtype(self.values[source].dtype)))
            value = self._add(node, "add", value, f"{base}_filled", shape, {}, stored)
        inputs = tuple(value if i == expansion.index else name for i, name in enumerate(node.inputs))
        return replace(node, inputs=inputs)

    def _past_product(self, node: Node, fold: GateFold) -> None:
        """Add a convolution on the gate, and note that its result belongs to the reader's."""
        product, weight = self.by_name.get(fold.product), self.old.params.get("".join(node.inputs[1:2]))
        if product is None or weight is None or fold.gate >= len(product.inputs) or node.op != "conv":
            raise _misfit(node.name, "it does not convolve a product with a fixed weight")
        gate = product.inputs[fold.gate]
        shape, _, positions = self._channels(node.name, gate, 1, fold.positions)
        if positions.size and positions.max() >= weight.shape[1]:
            raise _misfit(node.name, "it reads other channels")
        base, spatial = f"{node.outputs[0]}_from_gate", len(shape) - 2
        picked = _resized(shape, 1, positions.size)
        value = self._add(node, "gather", gate, f"{base}_picked", picked, {"axis": 1, "indices": positions})
        end, scale = self._end(node)
        columns = weight.array[:, positions].reshape(weight.shape[0], positions.size, -1).sum(axis=2, dtype=np.float64)
        columns = (columns * np.asarray(fold.constants) * scale[:, None]).astype(weight.array.dtype)
        stored = self._store(f"{base}_weight", columns.reshape(*columns.shape, *[1] * spatial))
        one = {"strides": [1] * spatial, "pads": [0] * (2 * spatial), "dilations": [1] * spatial, "conv_groups": 1}
        value = self._add(node, "conv", value, base, _resized(shape, 1, weight.shape[0]), one, stored)
        self.pending.setdefault(end.name, []).append(value)

    def _end(self, node: Node) -> tuple[Node, Array]:
        """Return behind which node something is added to a convolution's result, and float64[C_out] to scale it by.

        That is the BatchNorm that follows, so that the two can still be merged; else the convolution.
        """
        readers, ones = self.old.consumers(node.outputs[0]), np.ones(self.old.params[node.inputs[1]].shape[0])
        norm = readers[0] if len(readers) == 1 and node.outputs[0] not in self.old.outputs else node
        vectors = [self.old.params.get(name) for name in norm.inputs[1:]]
        plain = norm.op == "batch_norm" and norm.inputs[0] == node.outputs[0] and norm.attrs.get("axis", 1) == 1
        if not plain or norm.attrs.get("training") or len(vectors) < 4 or vectors[0] is None or vectors[3] is None:
            return node, ones
        variance = vectors[3].array.astype(np.float64) + norm.attrs["eps"]
        return norm, ones * vectors[0].array / np.sqrt(variance)

    def _finish(self, node: Node) -> None:
        """Append a node, and what is to be added to its result, which then goes by the same name."""
        behind: list[Node] = []
        for value in self.pending.get(node.name, ()):
            out = node.outputs[0]
            inner = self._free(f"{out}_without_gate")
            self.values[inner] = replace(self.values[out], name=inner)
            behind.insert(0, self._node(node, "add", (inner, value), out, {"behind": True}))
            node = replace(node, outputs=(inner, *node.outputs[1:]))
        self.nodes += [node, *behind]

    def _add(
        self, reader: Node, op: str, source: str, name: str, shape: Shape, attrs: Mapping[str, Any], *more: str
    ) -> str:
        name = self._free(name)
        self.values[name] = Value(name, shape, self.values[source].dtype)
        self.nodes.append(self._node(reader, op, (source, *more), name, attrs))
        return name

    def _node(self, near: Node, op: str, inputs: tuple[str, ...], output: str, attrs: Mapping[str, Any]) -> Node:
        attrs = MappingProxyType({**attrs, "inserted": True})
        what = f"rewrite of {near.source or near.op}"
        return Node(f"{output}:inserted", op, inputs, (output,), attrs, what, near.origin)

    def _store(self, name: str, content: Array) -> str:
        name = self._free(name)
        self.params[name] = Param(name, content)
        return name

    def _free(self, name: str) -> str:
        while name in self.values or name in self.params:
            name = f"{name}_"
        return name


def _resized(shape: Shape, axis: int, size: int) -> Shape:
    return tuple(size if a == axis else s for a, s in enumerate(shape))
