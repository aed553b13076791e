"""The builder that the rows of the ONNX-to-torch table use: a torch.fx graph under construction, and its modules.

Owns names, constants and the record of which tensor of the file became which parameter. Knows no op; the
rows and the walk are in module.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunec.errors import UnsupportedModel
from prunec.frontends.onnx.sizes.view import View
from prunec.ir.arrays import Array
from prunec.ir.graph import Shape


@dataclass(frozen=True, slots=True)
class Origin:
    """The parameter that a tensor of the file became: its name, and the permutation of its axes ("" none)."""

    parameter: str
    transposed: bool = False


class Unconvertible(Exception):
    """Raised by a row that has no torch form of its node; the text says why."""


class Builder:
    """A torch.fx graph under construction; lives inside one call of ``onnx_module.to_module``."""

    def __init__(self, batch: int | None) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.origins: dict[str, Origin] = {}
        self.batch = batch
        """The batch size that the file fixes; None if it leaves it open."""
        self._constants: dict[tuple[str, bool], fx.Node] = {}

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call of a function."""
        return self.graph.call_function(function, args, kwargs)

    def layer(self, view: View, module: nn.Module, x: fx.Node, **tensors: tuple[int, bool]) -> fx.Node:
        """Add a module and a call of it.

        Args:
            tensors: parameter name -> (the node's input that it came from, whether it was transposed).
        """
        name = self.fresh(view.node.name)
        self.root.add_module(name, module)
        for parameter, (index, transposed) in tensors.items():
            if view.has(index):
                self.origins.setdefault(view.inputs[index], Origin(f"{name}.{parameter}", transposed))
        return self.graph.call_module(name, (x,))

    def input(self, view: View, index: int, *, trained: bool = False) -> fx.Node:
        """Return an input of a node as a tensor: computed, or stored in the file.

        Args:
            trained: a stored tensor of floats becomes a parameter instead of a buffer.
        """
        name = view.inputs[index]
        found = self.values.get(name)
        if found is not None:
            return found
        return self.stored(name, self.content(view, index), trained=trained)

    def stored(self, name: str, array: Array, *, trained: bool = False) -> fx.Node:
        """Return a stored tensor; the same one for the same name."""
        tensor = to_tensor(array)
        trained = trained and tensor.is_floating_point()
        key = (name, trained)
        if key not in self._constants:
            attribute = self.fresh(name)
            if trained:
                self.root.register_parameter(attribute, nn.Parameter(tensor))
                self.origins.setdefault(name, Origin(attribute))
            else:
                self.root.register_buffer(attribute, tensor)
            self._constants[key] = self.graph.get_attr(attribute)
        return self._constants[key]

    def scalar_or_input(self, view: View, index: int, *, trained: bool = False) -> Any:
        """Return a stored single number as a number, anything else as a tensor."""
        array = view.constant(index) if view.inputs[index] not in self.values else None
        if array is not None and array.size == 1 and array.ndim <= max(1, view.rank(1 - index) or 0):
            return array.ravel()[0].item()
        return self.input(view, index, trained=trained)

    def content(self, view: View, index: int) -> Array:
        """Return a stored input.

        Raises:
            Unconvertible: it is computed.
        """
        array = view.constant(index)
        if array is None:
            raise Unconvertible(f"its input {view.inputs[index]!r} is computed from sizes or not known")
        return array

    def optional(self, view: View, index: int) -> Array | None:
        """Return a stored input, None if it is absent."""
        return self.content(view, index) if view.has(index) else None

    def fresh(self, name: str) -> str:
        """Return an attribute name that is free."""
        base = re.sub(r"\W+", "_", name).strip("_") or "tensor"
        base = f"t_{base}" if base[0].isdigit() else base
        fresh, count = base, 1
        while hasattr(self.root, fresh):
            count += 1
            fresh = f"{base}_{count}"
        return fresh


def to_tensor(array: Array) -> Tensor:
    """Return a writable copy; half precisions become float32, which is what is trained."""
    if array.dtype.kind == "V" or array.dtype.name in ("bfloat16", "float16"):
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise UnsupportedModel(f"a tensor of {array.dtype} cannot be trained with")
    return torch.from_numpy(np.array(array, copy=True))


def sizes(shape: Shape | None, what: str) -> list[int]:
    """Return all sizes but the first, which is the batch.

    Raises:
        Unconvertible: one of them is open.
    """
    if shape is None or not all(isinstance(size, int) for size in shape[1:]):
        raise Unconvertible(f"{what} depends on open sizes")
    return [int(size) for size in shape[1:] if isinstance(size, int)]


def numbers(values: Sequence[Any] | None, what: str) -> list[int]:
    """Return a setting as ints.

    Raises:
        Unconvertible: it is computed while the network runs.
    """
    if values is None or not all(isinstance(value, int | float) for value in values):
        raise Unconvertible(f"{what} are computed while the network runs")
    return [int(value) for value in values]


Row = Callable[[View, Builder], "fx.Node | Sequence[fx.Node]"]
