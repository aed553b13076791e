"""The IR: a frozen graph of canonical ops over named values.

Owns the data types and producer/consumer look-up. Knows no framework; what ops do is in passes/rules/.
Read prunec/ir/ops.py for the vocabulary and prunec/ir/labels.py for channel ids next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

Dim = int | str | None
"""A size: known, symbolic (the same name is the same size), or unknown."""
Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that flows through the graph.

    ``shape`` is ``None`` where even the rank is unknown. ``dtype`` is numpy's name ("float32").
    """

    name: str
    shape: Shape | None
    dtype: str = "float32"

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Param:
    """A tensor that the model holds: a parameter, buffer, initializer or literal.

    ``array`` is read-only and shares the model's memory where it can. ``literal`` marks a number
    written in the model's code, ``learned`` is False for a module's buffers: neither is counted as a parameter.
    """

    name: str
    array: np.ndarray[Any, Any]
    literal: bool = False
    learned: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One canonical op.

    Args:
        name: unique in the graph, the same on every run over the same model.
        op: a name of ``prunec.ir.ops.OPS``.
        inputs: value or parameter names; "" where an optional input is absent.
        outputs: value names; "" where an optional output is absent.
        attrs: what prunec.ir.ops says for this op.
        source: the op as the user's model has it ("Conv", "aten.convolution", "conv1: Conv2d").
        origin: the node of the user's model that this one came from (an FX or ONNX node name).
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    source: str = ""
    origin: str = ""

    def __str__(self) -> str:
        attrs = ", ".join(f"{key}={_short(value)}" for key, value in self.attrs.items())
        return f"{', '.join(self.outputs)} = {self.op}({', '.join(self.inputs)}){f' [{attrs}]' if attrs else ''}"


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Nodes in topological order over values and parameters.

    ``values`` has an entry for every graph input and node output; parameters are in ``params`` only.
    ``outputs`` may name the same value twice, or a graph input.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    params: Mapping[str, Param]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str = ""
    frontend: str = ""
    _producers: Mapping[str, Node] = field(init=False, repr=False)
    _consumers: Mapping[str, tuple[Node, ...]] = field(init=False, repr=False)
    _fixed: frozenset[str] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        producers: dict[str, Node] = {}
        consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.outputs:
                if name:
                    producers[name] = node
            for name in dict.fromkeys(node.inputs):
                if name:
                    consumers.setdefault(name, []).append(node)
        object.__setattr__(self, "_producers", producers)
        object.__setattr__(self, "_consumers", {name: tuple(nodes) for name, nodes in consumers.items()})

    def producer(self, value: str) -> Node | None:
        """Return the node that computes ``value``; None for inputs and parameters."""
        return self._producers.get(value)

    def consumers(self, value: str) -> tuple[Node, ...]:
        """Return the nodes that read ``value``, each once, in graph order."""
        return self._consumers.get(value, ())

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a value or parameter; None where it is unknown, or no such value is needed."""
        param = self.params.get(name)
        if param is not None:
            return param.shape
        value = self.values.get(name)
        return None if value is None else value.shape

    def stored(self, name: str) -> str:
        """Return the parameter that ``name`` is, or is made of element by element; "" where there is none.

        A quantised weight is stored as integers, and dequantised where it is read.
        """
        while name not in self.params:
            node = self.producer(name)
            if node is None or node.op not in _ELEMENT_BY_ELEMENT:
                return ""
            name = node.inputs[0]
        return name

    def is_own_weight(self, node: Node) -> bool:
        """Tell whether the weight of a contraction is a parameter that nothing reads in another way.

        A convolution and a transposed one see each other's input channels as outputs: what changes the weight for
        the inputs of one spoils the other.
        """
        weight = node.inputs[1]
        return (
            weight in self.params
            and weight not in self.outputs
            and all(
                user.inputs.count(weight) == 1
                and user.inputs[1:2] == (weight,)
                and summed_axis(user) == summed_axis(node)
                for user in self.consumers(weight)
            )
        )

    def fixed_values(self) -> frozenset[str]:
        """Return the names of the parameters and of all values computed from parameters alone."""
        if self._fixed is None:  # many passes ask, and some of them over and over
            found = set(self.params)
            for node in self.nodes:
                if node.op != "opaque" and any(node.inputs) and all(name in found for name in node.inputs if name):
                    found.update(name for name in node.outputs if name)
            object.__setattr__(self, "_fixed", frozenset(found))
        assert self._fixed is not None
        return self._fixed

    def text(self, around: Node | None = None, radius: int = 3) -> str:
        """Return the graph as lines, or the lines around one node, for messages and tests."""
        nodes: Sequence[Node] = self.nodes
        if around is not None:
            at = nodes.index(around)
            nodes = nodes[max(0, at - radius) : at + radius + 1]
        return "\n".join(f"{'>' if node is around else ' '} {node}" for node in nodes)


def summed_axis(node: Node) -> tuple[str, int, bool]:
    """Return what tells contractions apart that sum over different axes, or in different groups, of the same weight."""
    return node.op, node.attrs.get("conv_groups", 1), bool(node.attrs.get("transpose_b"))


def reads_alike(a: Node, b: Node) -> bool:
    """Tell whether two contractions read the same weight and bias, and sum over the same axis of the weight."""
    return a.inputs[1:3] == b.inputs[1:3] and summed_axis(a) == summed_axis(b)


_ELEMENT_BY_ELEMENT = ("dequantize", "cast", "identity")
"""Ops through which a stored tensor is still the same tensor: its axes are sliced as they are."""


def _short(value: Any) -> str:
    text = f"array{list(value.shape)}" if isinstance(value, np.ndarray) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
