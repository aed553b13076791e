"""A contraction by itself: its sizes, the same with other widths, and an ONNX model with this node only.

Owns the properties of a node that its time depends on. staircases.py times these models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from prunec.ir.graph import Graph, Node
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.cost import sample_sizes
from prunec.passes.rules.cost import Sizes

_OPSET, _IR_VERSION = 17, 8
"""As prunec's own exports."""
_MOST_ELEMENTS = 1 << 28
"""Most bytes of a tensor in a layer's model, since a file can hold no more than 2 GiB."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The properties of a contraction that its time depends on; two that are equal take equally long.

    Args:
        op: ``conv``, ``conv_transpose``, ``matmul`` or ``attention``.
        inputs: sizes, for one sample; of a matmul as if neither operand were transposed, of attention's keys
            transposed. Biases and masks are left out, since they take hardly any time.
        stored: per input, whether it is computed from parameters alone.
        window: of a convolution: strides, pads, dilations and output_padding.
        groups: of a convolution.
    """

    op: str
    inputs: tuple[Sizes, ...]
    stored: tuple[bool, ...]
    window: tuple[tuple[str, tuple[int, ...]], ...] = ()
    groups: int = 1


def layers_alone(graph: Graph) -> dict[str, Layer | None]:
    """Return each contraction by itself; None if its sizes are unknown or prunec cannot make a model of its op."""
    fixed = graph.fixed_values()
    return {node.name: _layer(graph, node, fixed) for node in graph.nodes if node.op in CONTRACTIONS}


def _layer(graph: Graph, node: Node, fixed: frozenset[str]) -> Layer | None:
    names = node.inputs[: _NUM_INPUTS.get(node.op, 0)]
    stored = tuple(name in fixed for name in names)
    inputs = tuple(sample_sizes(graph, name, batched=not kept) for name, kept in zip(names, stored, strict=True))
    if not inputs or any(not sizes or not 0 < math.prod(sizes) < _MOST_ELEMENTS for sizes in inputs):
        return None
    if node.op == "matmul":
        flags = (node.attrs.get("transpose_a"), node.attrs.get("transpose_b"))
        return Layer(node.op, tuple(map(_transposed, inputs, flags)), stored)
    if node.op == "attention":
        return Layer(node.op, (inputs[0], _transposed(inputs[1], True), inputs[2]), stored)
    window = tuple((name, tuple(node.attrs[name])) for name in _WINDOW if name in node.attrs)
    return Layer(node.op, inputs, stored, window, node.attrs.get("conv_groups", 1))


_NUM_INPUTS: Mapping[str, int] = MappingProxyType({"conv": 2, "conv_transpose": 2, "matmul": 2, "attention": 3})
_WINDOW = ("strides", "pads", "dilations", "output_padding")


def _transposed(sizes: Sizes, swap: object) -> Sizes:
    return (*sizes[:-2], sizes[-1], sizes[-2]) if swap and len(sizes) > 1 else sizes


# --- other widths -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """The channels of a layer, input or output, whose number can change.

    Args:
        places: (input, axis, size per unit) of each axis that has them.
        units: their number: channels, or groups of them.
        channels: output channels of a unit.
        grouped: the units are the groups of a convolution.
    """

    places: tuple[tuple[int, int, int], ...]
    units: int
    channels: int = 1
    grouped: bool = False


def made(layer: Layer) -> Side | None:
    """Return the output channels of a layer; None if they do not have an axis of their own."""
    return _MADE[layer.op](layer)


def read(layer: Layer) -> Side | None:
    """Return the channels that a layer sums over; of a grouped convolution, its groups."""
    return _READ[layer.op](layer)


def at(layer: Layer, side: Side, units: int) -> Layer:
    """Return the layer with ``units`` units of ``side``."""
    change = units - side.units
    inputs = [list(sizes) for sizes in layer.inputs]
    for index, axis, unit in side.places:
        inputs[index][axis] += change * unit
    groups = layer.groups + change if side.grouped else layer.groups
    return replace(layer, inputs=tuple(map(tuple, inputs)), groups=groups)


def _plain(layer: Layer, *places: tuple[int, int]) -> Side:
    index, axis = places[0]
    return Side(tuple((*place, 1) for place in places), layer.inputs[index][axis])


def _groups(layer: Layer) -> Side:
    """Return the groups of a convolution; the weight's axis 0 counts outputs, or inputs of a transposed one."""
    sizes = [(0, 1, layer.inputs[0][1] // layer.groups), (1, 0, layer.inputs[1][0] // layer.groups)]
    channels = sizes[1][2] if layer.op == "conv" else layer.inputs[1][1]
    return Side(tuple(sizes), layer.groups, channels, grouped=True)


def _conv_side(*places: tuple[int, int]) -> Callable[[Layer], Side]:
    return lambda layer: _groups(layer) if layer.groups > 1 else _plain(layer, *places)


def _product_makes(layer: Layer) -> Side | None:
    """Return the columns of the second operand, or the rows of the first if that is the weight."""
    if layer.stored == (True, False):
        return _plain(layer, (0, -2)) if len(layer.inputs[0]) > 1 else None
    return _plain(layer, (1, -1)) if len(layer.inputs[1]) > 1 else None


def _product_reads(layer: Layer) -> Side:
    return _plain(layer, (0, -1), (1, -2 if len(layer.inputs[1]) > 1 else -1))


_MADE: Mapping[str, Callable[[Layer], Side | None]] = MappingProxyType(
    {
        "conv": _conv_side((1, 0)),
        "conv_transpose": _conv_side((1, 1)),
        "matmul": _product_makes,
        "attention": lambda layer: _plain(layer, (2, -1)),
    }
)
_READ: Mapping[str, Callable[[Layer], Side | None]] = MappingProxyType(
    {
        "conv": _conv_side((0, 1), (1, 1)),
        "conv_transpose": _conv_side((0, 1), (1, 0)),
        "matmul": _product_reads,
        "attention": lambda layer: _plain(layer, (0, -1), (1, -2)),
    }
)


# --- the model --------------------------------------------------------------------------------------


def onnx_model(layer: Layer, seed: int = 0) -> bytes:
    """Return the layer as a model with random stored weights; the other inputs are fed."""
    rng = np.random.default_rng(seed)
    names = [f"input{index}" for index in range(len(layer.inputs))]
    entries = list(zip(names, layer.inputs, layer.stored, strict=True))
    all_stored = all(layer.stored)
    weights = [
        numpy_helper.from_array(0.1 * rng.standard_normal(sizes, dtype=np.float32), name)
        for index, (name, sizes, stored) in enumerate(entries)
        # Without an input, ONNX Runtime would fold the whole model into a constant.
        if stored and not (all_stored and index == 0)
    ]
    kept = {tensor.name for tensor in weights}
    graph = helper.make_graph(
        _nodes(layer, names),
        "layer",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s, _ in entries if n not in kept],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        weights,
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def _nodes(layer: Layer, names: Sequence[str]) -> list[Any]:
    if layer.op == "matmul":
        return [helper.make_node("MatMul", names, ["output"], "layer")]
    if layer.op == "attention":
        query, keys, values = names
        return [
            helper.make_node("MatMul", [query, keys], ["scores"], "scores"),
            helper.make_node("Softmax", ["scores"], ["weights"], "weights", axis=-1),
            helper.make_node("MatMul", ["weights", values], ["output"], "layer"),
        ]
    kind = "Conv" if layer.op == "conv" else "ConvTranspose"
    attrs: dict[str, Any] = dict(layer.window)
    return [helper.make_node(kind, names, ["output"], "layer", group=layer.groups, **attrs)]
