"""A few lines to write a Graph by hand, for tests of single rules.

``Tiny`` collects inputs, parameters and nodes; each ``node`` returns its output's name, so that graphs
read from left to right. Networks with weights are in modules/networks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.graph import Graph, Node, Param, Shape, Value

NAN = float("nan")


class Tiny:
    """A graph in the making."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._params: dict[str, Param] = {}
        self._nodes: list[Node] = []
        self._inputs: list[str] = []

    def input(self, *shape: Any, dtype: str = "float32") -> str:
        name = f"x{len(self._inputs)}"
        self._inputs.append(name)
        self._values[name] = Value(name, shape, dtype)
        return name

    def param(self, array: Any, name: str = "", literal: bool = False) -> str:
        name = name or f"p{len(self._params)}"
        self._params[name] = Param(name, np.asarray(array), literal)
        return name

    def node(self, op: str, inputs: Sequence[str], shape: Shape | None, dtype: str = "float32", /, **attrs: Any) -> str:
        (name,) = self.split(op, inputs, [shape], dtype, **attrs)
        return name

    def split(
        self, op: str, inputs: Sequence[str], shapes: Sequence[Shape | None], dtype: str = "float32", /, **attrs: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs."""
        names = tuple(f"{op}{len(self._nodes)}" + (f":{i}" if i else "") for i in range(len(shapes)))
        for name, shape in zip(names, shapes, strict=True):
            self._values[name] = Value(name, shape, dtype)
        name = f"{op}{len(self._nodes)}"
        self._nodes.append(Node(name, op, tuple(inputs), names, MappingProxyType(attrs), source=op, origin=name))
        return names

    def conv(
        self, x: str, weight: Any, out: Shape, bias: Any = None, pad: int = 0, groups: int = 1, op: str = "conv"
    ) -> str:
        weight = np.asarray(weight, dtype=np.float32)
        inputs = [x, self.param(weight), "" if bias is None else self.param(np.asarray(bias, dtype=np.float32))]
        spatial = weight.ndim - 2
        ones = [1] * spatial
        attrs = {"strides": ones, "pads": [pad] * 2 * spatial, "dilations": ones, "conv_groups": groups}
        return self.node(op, inputs, out, **attrs)

    def norm(self, x: str, gamma: Any, beta: Any, mean: Any = None, var: Any = None, **attrs: Any) -> str:
        """Add a BatchNorm with running statistics 0 and 1 where none are given."""
        channels = len(gamma)
        vectors = [gamma, beta, np.zeros(channels) if mean is None else mean, np.ones(channels) if var is None else var]
        names = [self.param(np.asarray(vector, dtype=np.float32)) for vector in vectors]
        shape = self._values[x].shape
        return self.node("batch_norm", [x, *names], shape, **{"axis": 1, "eps": 0.0, "training": False, **attrs})

    def constant(self, channels: Sequence[float], *spatial: Any, batch: Any = "N") -> str:
        """Add an input [batch, C, *spatial] and a BatchNorm that makes its channels constant, except for NaN ones."""
        x = self.input(batch, len(channels), *spatial)
        gamma = [1.0 if value != value else 0.0 for value in channels]
        beta = [0.0 if value != value else value for value in channels]
        return self.norm(x, gamma, beta)

    def graph(self, *outputs: str) -> Graph:
        return Graph(
            nodes=tuple(self._nodes),
            values=MappingProxyType(self._values),
            params=MappingProxyType(self._params),
            inputs=tuple(self._inputs),
            outputs=outputs,
        )
