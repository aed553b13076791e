"""Write the nodes that a rewrite inserts (passes/rewrites/rewrite.py) into an ONNX model: one small function per IR op.

Owns nodes that the user's file never had. Each is written in full, with what is left of its sizes after
pruning, and gives its value the name that the passes know it by; one that would change nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import helper

from prunec.backends.onnx.surgeon import Surgeon
from prunec.ir.arrays import Array
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """One inserted node, in front of the node at ``place``; ``attrs`` and ``stored`` are its own, pruned."""

    surgeon: Surgeon
    place: int
    node: Node
    attrs: Mapping[str, Any]
    stored: Array | None
    sizes: tuple[int | str | None, ...]
    opset: int

    def write(self, op: str, *tensors: Array, **attributes: Any) -> None:
        name = self.node.outputs[0]
        inputs = [self.node.inputs[0], *(self.surgeon.store(tensor, f"{name}_{op.lower()}") for tensor in tensors)]
        self.surgeon.insert_before(self.place, helper.make_node(op, inputs, [name], name, **attributes))

    def pass_on(self) -> None:
        """Let what reads the node's result read its input."""
        self.surgeon.replace_value(self.node.outputs[0], self.node.inputs[0])


def insert(surgeon: Surgeon, place: int, node: Node, graph: Graph, edits: Edits, opset: int) -> None:
    """Write one inserted IR node in front of the node at ``place``."""
    attrs = {**node.attrs, **edits.attrs.get(node.name, {})}
    stored = None
    if len(node.inputs) > 1:
        stored = edits.params.get(node.inputs[1], graph.params[node.inputs[1]].array)
    source = node.inputs[0]
    sizes = edits.shapes.get(source, graph.shape(source)) or ()
    at = _Place(surgeon, place, node, attrs, stored, sizes, opset)
    _INSERTS[node.op](at)


def _pad(at: _Place) -> None:
    """Pad with zeros: amounts are an input from opset 11 on."""
    pads = [int(amount) for amount in at.attrs["pads"]]
    if not any(pads):
        at.pass_on()
    elif at.opset < 11:
        at.write("Pad", pads=pads)
    else:
        at.write("Pad", np.array(pads, np.int64))


def _gather(at: _Place) -> None:
    indices, axis = np.asarray(at.attrs["indices"], dtype=np.int64), at.attrs["axis"]
    if np.array_equal(indices, np.arange(at.sizes[axis])):
        at.pass_on()
    else:
        at.write("Gather", indices, axis=axis)


def _add(at: _Place) -> None:
    assert at.stored is not None, "an inserted Add reads a stored vector"
    at.write("Add", at.stored) if at.stored.any() else at.pass_on()


def _conv(at: _Place) -> None:
    assert at.stored is not None, "an inserted convolution reads a stored weight"
    at.write("Conv", at.stored)


_INSERTS: Mapping[str, Callable[[_Place], None]] = MappingProxyType(
    {"pad": _pad, "gather": _gather, "conv": _conv, "add": _add}
)
