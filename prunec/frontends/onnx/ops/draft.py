"""What the ONNX op tables produce: drafts of IR nodes, and the few ways to make them.

Owns ``Draft`` and the helpers that every table uses. Knows no op; read table.py for the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from prunec.frontends.onnx.sizes.view import View
from prunec.ir.arrays import Array
from prunec.ir.graph import Shape, Value


class Draft(NamedTuple):
    """One IR node in the making.

    Args:
        op: canonical.
        inputs, outputs: value names; inner values are made with ``inner``.
        attrs: canonical attributes.
        slots: for each input, its place among the ONNX node's inputs; -1 for an inner value.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    slots: tuple[int, ...]


INNER: dict[str, Any] = {"inner": True}
"""Attributes of a binary op that is part of a larger ONNX node: its operands cannot be replaced one by one."""

Translate = Callable[[View], Sequence[Draft]]


def one(view: View, op: str, slots: Sequence[int] = (0,), **attrs: Any) -> list[Draft]:
    """Translate to one IR node that reads the ONNX node's inputs ``slots`` and gives all of its outputs."""
    used = [slot for slot in slots if slot < len(view.inputs)]
    while used and not view.inputs[used[-1]]:
        used.pop()
    return [Draft(op, tuple(view.inputs[slot] for slot in used), view.outputs, attrs, tuple(used))]


def moved(view: View, op: str, settings: Sequence[int] = (), **attrs: Any) -> list[Draft]:
    """Translate to a movement of input 0.

    ``settings`` are inputs that say how to move. One whose contents depend on the input is read as well:
    what it computes from the sizes of values must stay as it is.
    """
    return one(view, op, (0, *(slot for slot in settings if not is_settled(view, slot))), **attrs)


def is_settled(view: View, slot: int) -> bool:
    """Tell whether nothing that pruning can change flows into a setting without prunec knowing the result."""
    if not view.has(slot):
        return True
    unsettled = view.facts.unsettled(view.inputs[slot])
    return unsettled is not None and not unsettled.any()


def opaque(view: View, reason: str) -> list[Draft]:
    """Refuse: all inputs and what subgraphs read are pinned, with ``reason``."""
    read = (name for name in (*view.inputs, *view.node.captured) if name)
    names = dict.fromkeys(piece for name in read for piece in view.facts.pieces.get(name, (name,)))
    slots = tuple(view.inputs.index(name) if name in view.inputs else -1 for name in names)
    return [Draft("opaque", tuple(names), view.outputs, {"reason": reason}, slots)]


def refuse(reason: str) -> Translate:
    """Return the translation of an op that is always refused."""
    return lambda view: opaque(view, reason)


def inner(view: View, suffix: str, shape: Shape | None, dtype: str = "") -> str:
    """Make a value between two IR nodes of one ONNX node; return its name."""
    name = f"{view.outputs[0]}/{suffix}"
    while name in view.facts.values or name in view.facts.known:
        name += "'"
    if not dtype:
        out = view.facts.values.get(view.outputs[0])
        dtype = out.dtype if out is not None else "float32"
    view.facts.values[name] = Value(name, shape, dtype)
    return name


def literal(view: View, suffix: str, value: Any, dtype: str = "float32") -> str:
    """Make a number that the ONNX node holds as an attribute into something that an IR node can read."""
    name = f"{view.outputs[0]}/{suffix}"
    while name in view.facts.values or name in view.facts.known:
        name += "'"
    view.facts.known[name] = np.asarray(value, dtype=dtype)
    return name


def set_shape(view: View, index: int, shape: Shape) -> None:
    """Record an output's shape where inference had none."""
    name = view.outputs[index]
    before = view.facts.values.get(name)
    if before is None or before.shape is None:
        view.facts.values[name] = Value(name, shape, before.dtype if before is not None else "float32")


def scalar(array: Array | None) -> float | None:
    """Return the one element of an array."""
    return float(array.ravel()[0]) if array is not None and array.size == 1 else None
