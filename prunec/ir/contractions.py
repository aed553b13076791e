"""Contractions: on which axes the channels lie in what one reads, stores and makes.

Owns this geometry, one row per op; whoever needs to know it asks here, and not for the op's name. What contractions do
with ids, constants and costs stands in passes/rules/, like that of all ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from prunec.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Contraction:
    """Where a contraction has its channels.

    Args:
        is_spatial: they are on axis 1 of what it reads and makes, kernel and convolution groups belong to it; those of
            others are on the last axis.
        is_affine: its second input is the weight, and the third, where there is one, a bias with an element for each
            channel that it makes.
        sums: so many of its inputs, from the first on, have channels that it sums over.
        weights: where its weights are among its inputs: from the first number up to, and without, the second.
        in_axis, out_axis: of its second input, as if nothing were transposed: where the channels are that it sums over,
            and those that it makes. Axis 1 of a grouped convolution's weight holds those of one group.
    """

    is_spatial: bool = False
    is_affine: bool = False
    sums: int = 1
    weights: tuple[int, int] = (0, 0)
    in_axis: int = 1
    out_axis: int = 0


GEOMETRY: Mapping[str, Contraction] = MappingProxyType(
    {
        "conv": Contraction(is_spatial=True, is_affine=True, weights=(1, 2)),
        "conv_transpose": Contraction(is_spatial=True, is_affine=True, weights=(1, 2), in_axis=0, out_axis=1),
        "matmul": Contraction(is_affine=True, sums=2, weights=(0, 2), in_axis=0, out_axis=1),
        "attention": Contraction(sums=2),
        "rnn": Contraction(weights=(1, 3), in_axis=2),
    }
)
_NONE = Contraction(sums=0)
"""Any other op."""


def geometry(node: Node) -> Contraction:
    """Return the row of a node; that of an op which is no contraction sums over nothing."""
    return GEOMETRY.get(node.op, _NONE)


def is_spatial(node: Node) -> bool:
    """Tell whether a node is a convolution of some kind."""
    return geometry(node).is_spatial


def is_affine(node: Node) -> bool:
    """Tell whether a node computes W · x + b."""
    return geometry(node).is_affine


def weights_of(node: Node) -> tuple[str, ...]:
    """Return the names of those inputs of a contraction that may be weights."""
    return node.inputs[slice(*geometry(node).weights)]


def bias_of(node: Node) -> str:
    """Return the name of a contraction's bias; "" where it has none."""
    return node.inputs[2] if is_affine(node) and len(node.inputs) > 2 else ""


def conv_groups(node: Node) -> int:
    """Return the number of convolution groups; 1 of all that is no convolution."""
    return int(node.attrs.get("conv_groups", 1))


def is_depthwise(graph: Graph, node: Node) -> bool:
    """Tell whether each channel of a convolution's output is made of one channel of its input, and no other is."""
    groups = conv_groups(node)
    shapes = [graph.shape(node.inputs[0]), graph.shape(node.outputs[0])]
    return groups > 1 and all(shape is not None and shape[1] == groups for shape in shapes)


def kernel_of(node: Node, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the spatial sizes of a weight of sizes ``shape``; () where it has none."""
    return tuple(shape[2:]) if is_spatial(node) else ()


def channel_axis(node: Node, rank: int) -> int:
    """Return the axis on which a contraction puts the channels that it makes, of a result of so many axes."""
    return 1 if is_spatial(node) else rank - 1


def read_axis(node: Node, rank: int, index: int = 0) -> int:
    """Return the axis of the operand ``index`` (of those that are summed over) on which the channels lie."""
    if is_spatial(node):
        return 1
    if index:
        return max(0, rank - 2 + in_axis(node))
    return max(0, rank - (2 if node.attrs.get("transpose_a") else 1))


def in_axis(node: Node) -> int:
    """Return the axis of a contraction's weight with the channels that it sums over."""
    return geometry(node).out_axis if node.attrs.get("transpose_b") else geometry(node).in_axis


def out_axis(node: Node) -> int:
    """Return the axis of a contraction's weight with the channels that it makes."""
    return geometry(node).in_axis if node.attrs.get("transpose_b") else geometry(node).out_axis
