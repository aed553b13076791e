"""What a row of the table gets, one recorded call, and what it may do: emit IR nodes.

Does not know any op: those are in the other files of this room, and ``table.py`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

Operand = Tensor | float | int | bool | str | None
"""A tensor, a number written in the model, or the name of a value made by ``Emitter.emit``."""


class Emitter(Protocol):
    """What a row may do: add IR nodes, and read tensors whose content is known."""

    def emit(self, op: str, inputs: Sequence[Operand], outputs: Sequence[Any], **attrs: Any) -> list[str]:
        """Add a node; ``outputs`` are result tensors, or shapes for values that only the IR has."""

    def alias(self, source: Tensor, result: Tensor) -> None:
        """Give a result the name of what it equals, without a node."""

    def constant(self, tensor: Tensor) -> np.ndarray[Any, Any] | None:
        """Return the content of a parameter or buffer; None for computed tensors."""


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call: its name without namespace, overload and underscore, arguments by schema name, results.

    Args:
        qualified: the name with its namespace, as the schema has it ("aten::relu_").
    """

    name: str
    args: Mapping[str, Any]
    results: tuple[Tensor, ...]
    qualified: str = "aten::"

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.args.get(name)
        return default if value is None else value

    @property
    def out(self) -> Tensor:
        return self.results[0]


Row = Callable[[Call, Emitter], None]


def positive(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    return axis + rank if axis < 0 else axis


def positive_axes(axes: Any, rank: int) -> list[int]:
    """Return one axis, several, or none for all, counted from the front and sorted."""
    if axes is None or axes == []:
        return list(range(rank))
    return sorted(positive(axis, rank) for axis in ([axes] if isinstance(axes, int) else axes))


def first_tensor(call: Call) -> Tensor:
    """Return the first tensor argument, whatever the schema calls it."""
    for name in ("self", "input", "x", "query"):
        if isinstance(call.args.get(name), Tensor):
            return call.args[name]  # type: ignore[no-any-return]  # just checked
    return next(value for value in call.args.values() if isinstance(value, Tensor))


def spatial_axes(call: Call, count: int) -> list[int]:
    """Return the last ``count`` axes of the first tensor."""
    rank = first_tensor(call).dim()
    return list(range(rank - count, rank))


def opaque(call: Call, to: Emitter) -> None:
    """Emit an op that pins what it touches: no row matches, or a row does not cover this use."""
    to.emit("opaque", tensors_of(call), call.results)


def tensors_of(call: Call) -> list[Tensor]:
    """Return all tensor arguments, those in lists too, in the schema's order."""
    tensors: list[Tensor] = []
    for value in call.args.values():
        items = value if isinstance(value, (list, tuple)) else [value]
        tensors.extend(item for item in items if isinstance(item, Tensor))
    return tensors
