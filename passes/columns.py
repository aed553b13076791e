"""Columns: what becomes of a weight's columns when the weight is computed from parameters.

Owns two questions. Which parameters have to change, and how, so that a column of a contraction's weight takes over
others (a carrier, see carriers.py)? A parameter does; so do those of a sum, of a padding of kernel axes, of a product
with what is the same for all columns, a masked parameter (torch.nn.utils.prune), and the direction of a weight norm,
whose gain is rescaled afterwards (weight_norms.py). Nothing else may read them. And which tensors have the columns of a
grouped weight, and are cut group by group as it is?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunec.ir.contractions import in_axis, is_spatial
from prunec.ir.graph import Graph, Node, summed_axis
from prunec.passes.rules.moves import pads_space
from prunec.passes.weight_norms import WeightNorm, weight_norms


@dataclass(frozen=True, slots=True)
class Column:
    """A parameter whose columns change as those of the weight do.

    Args:
        param: its name.
        norm: where each column has a norm and a gain of its own, the weight norm: column k is g_k / norm_k times the
            parameter's.
        mask: a buffer of zeros and ones that the parameter is multiplied by; "" where there is none. What a column
            takes over may lie where its own mask is zero, so its mask becomes one.
    """

    param: str
    norm: WeightNorm | None = None
    mask: str = ""


def columns(graph: Graph, node: Node) -> tuple[Column, ...]:
    """Return the parameters behind a convolution's weight that take a carrier; none where it cannot take one."""
    weight = node.inputs[1]
    if weight in graph.params:
        return (Column(weight),) if graph.is_own_weight(node) else ()
    if not is_spatial(node) or weight in graph.outputs:
        return ()
    walk = _Walk(graph, node, in_axis(node))
    found = walk.columns(weight)
    return found if found and walk.is_alone(found) else ()


def grouped_weights(graph: Graph, node: Node) -> tuple[str, ...]:
    """Return the parameters that are cut group by group as a grouped convolution's weight is; the stored one first."""
    weight = node.inputs[1]
    stored = graph.stored(weight)
    if stored:
        return (stored,)
    found = _Walk(graph, node, 1).columns(weight)
    return tuple(name for column in found for name in (column.param, column.mask) if name) or (weight,)


def grouped_values(graph: Graph, node: Node) -> tuple[str, ...]:
    """Return a grouped convolution's weight, the parameters behind it, and what has its columns on the way."""
    weight = node.inputs[1]
    stored = graph.stored(weight)
    if stored:
        return (weight, stored)
    walk = _Walk(graph, node, 1)
    walk.columns(weight)
    made = (out for maker in graph.nodes if maker.name in walk.passed for out in maker.outputs if out)
    alike = (name for name in made if (graph.shape(name) or ())[:2] == (graph.shape(weight) or ())[:2])
    return (weight, *grouped_weights(graph, node), *alike)


class _Walk:
    """Goes from a weight to its parameters, and notes which nodes it passes."""

    def __init__(self, graph: Graph, node: Node, axis: int) -> None:
        self.graph, self.kind, self.axis = graph, summed_axis(node), axis
        self.rank = len(graph.shape(node.inputs[1]) or ())
        self.norms = {root: norm for norm in weight_norms(graph) for root in norm.roots}
        self.passed: set[str] = set()

    def columns(self, name: str) -> tuple[Column, ...]:
        """Return the parameters behind a value whose columns are the weight's; none where some cannot be changed."""
        param, node = self.graph.params.get(name), self.graph.producer(name)
        if param is not None or node is None:
            return () if param is None or param.literal or self._extent(name) == 1 else (Column(name),)
        if name in self.norms:
            return self._normed(self.norms[name])
        self.passed.add(node.name)
        if node.op in ("identity", "cast") or pads_space(node):
            return self.columns(node.inputs[0])
        if node.op in ("add", "sub", "rsub"):
            parts = [self.columns(operand) for operand in node.inputs]
            return (*parts[0], *parts[1]) if parts[0] and parts[1] else ()
        return self._product(node) if node.op in ("mul", "div") else ()

    def _normed(self, norm: WeightNorm) -> tuple[Column, ...]:
        self.passed |= norm.nodes
        if norm.groups.shape[self.axis] == 1:
            return (Column(norm.v),)
        return (Column(norm.v, norm=norm),) if norm.groups.size == norm.groups.shape[self.axis] else ()

    def _product(self, node: Node) -> tuple[Column, ...]:
        """Follow the operand whose columns are apart; the other is the same for all of them, or a mask."""
        if node.op == "mul" and all(name in self.graph.params for name in node.inputs):
            for mask, param in (node.inputs, node.inputs[::-1]):
                if self._is_mask(mask) and self.graph.shape(mask) == self.graph.shape(param):
                    return tuple(replace(column, mask=mask) for column in self.columns(param))
        for at in (0, 1) if node.op == "mul" else (0,):
            main, other = node.inputs[at], node.inputs[1 - at]
            if self._extent(main) != 1 and self._extent(other) == 1 and other in self.graph.fixed_values():
                return self.columns(main)
        return ()

    def _is_mask(self, name: str) -> bool:
        param = self.graph.params[name]
        return not param.learned and not param.literal and bool(((param.array == 0) | (param.array == 1)).all())

    def _extent(self, name: str) -> int | None:
        """Return how many columns a value has; 1 where they are all the same."""
        shape = self.graph.shape(name)
        at = self.axis - self.rank + len(shape or ())
        size = None if shape is None else 1 if at < 0 else shape[at]
        return size if isinstance(size, int) else None

    def is_alone(self, found: Sequence[Column]) -> bool:
        """Tell whether convolutions of one kind read what the parameters make, in one way, and nothing else does.

        A module that is called twice makes its weight twice, from nodes that do the same.
        """
        pending = {column.param for column in found} | {column.mask for column in found if column.mask}
        if len({column.param for column in found}) < len(found):
            return False
        return self._reaches_ours(pending, {}) or self._reaches_ours(pending, self._twins())

    def _reaches_ours(self, pending: set[str], twins: Mapping[str, str]) -> bool:
        """Tell whether all that reads ``pending``, and what is made of it, is ours, a twin of it, or a convolution."""
        ours = {out for node in self.graph.nodes if node.name in self.passed for out in node.outputs}
        same = {twins[out] for out in ours if out in twins}
        waiting, seen = list(pending), set(pending)
        while waiting:
            name = waiting.pop()
            if name in self.graph.outputs:
                return False
            for node in self.graph.consumers(name):
                if summed_axis(node) == self.kind and [at for at, other in enumerate(node.inputs) if other == name] == [
                    1
                ]:
                    continue
                if any(out not in ours and twins.get(out, "") not in same for out in node.outputs):
                    return False
                waiting.extend(out for out in node.outputs if out not in seen)
                seen.update(node.outputs)
        return True

    def _twins(self) -> dict[str, str]:
        """Return the values made of parameters alone -> a name that those have in common that are made alike."""
        alike = {name: name for name in self.graph.params}
        makers: dict[Any, str] = {}
        for node in self.graph.nodes:
            if node.outputs and node.op != "opaque" and all(name in alike for name in node.inputs if name):
                key = (node.op, tuple(alike.get(name, "") for name in node.inputs), str(dict(node.attrs)))
                first = makers.setdefault(key, node.outputs[0])
                alike.update({out: f"{first}:{i}" for i, out in enumerate(node.outputs)})
        return alike
