"""The geometry of contractions is what the channel rules do with ids."""

from __future__ import annotations

from typing import Any

import pytest
from graphs.classes import conv, weight
from graphs.tiny import Tiny

from prunec.ir.contractions import (
    GEOMETRY,
    bias_of,
    channel_axis,
    geometry,
    in_axis,
    is_affine,
    kernel_of,
    out_axis,
    read_axis,
    weights_of,
)
from prunec.ir.graph import Graph, Node
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.channels import channels

CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv": ("conv", (5, 4, 3, 3), (1, 5, 6, 6), {}),
    "conv_transpose": ("conv_transpose", (4, 5, 3, 3), (1, 5, 10, 10), {}),
    "matmul": ("matmul", (8, 5), (1, 4, 8, 5), {}),
    "matmul of a transposed weight": ("matmul", (5, 8), (1, 4, 8, 5), {"transpose_b": True}),
    "matmul of a transposed input": ("matmul", (8, 5), (1, 4, 8, 5), {"transpose_a": True}),
}
"""Name -> (op, sizes of the weight, sizes of the result, attributes); the input is 1 × 4 × 8 × 8."""


def graph_of(case: str) -> tuple[Graph, Node]:
    op, sizes, out, attrs = CASES[case]
    t = Tiny()
    x = conv(t, t.input(1, 3, 8, 8), 3, 4)
    if op == "matmul":
        made = t.node(op, [x, t.param(weight(*sizes), "w")], out, **attrs)
    else:
        made = t.conv(x, weight(*sizes), out, op=op)
    graph = t.graph(made)
    return graph, graph.nodes[-1]


def test_every_contraction_has_a_row_and_no_other_op_has() -> None:
    assert set(GEOMETRY) == set(CONTRACTIONS)
    other = Node("n", "relu", ("x", "y", "z"), ("out",))
    assert (geometry(other).sums, weights_of(other), bias_of(other), is_affine(other)) == (0, (), "", False)


@pytest.mark.parametrize("case", CASES)
def test_what_is_summed_over_and_what_is_made_lie_where_the_row_says(case: str) -> None:
    graph, node = graph_of(case)
    classes = channels(graph)

    def on(name: str, axis: int) -> list[int]:
        return [int(c) for field in classes.labels[name].on(axis) for c in classes.class_of[field].ravel()]

    read, stored = on(node.inputs[0], read_axis(node, 4)), on(node.inputs[1], in_axis(node))
    made, rows = on(node.outputs[0], channel_axis(node, 4)), on(node.inputs[1], out_axis(node))
    assert stored, "the weight's axis carries classes"
    assert len(rows) == 5
    assert made == rows
    assert not set(stored) & set(rows)
    if read:  # a product over the last axis of a map reads no channels
        assert read == stored
    sizes = CASES[case][1]
    assert kernel_of(node, sizes) == (sizes[2:] if node.op != "matmul" else ())


@pytest.mark.parametrize("swapped", [False, True])
def test_both_operands_of_a_product_are_summed_over(swapped: bool) -> None:
    product = Node("n", "matmul", ("a", "b"), ("y",), {"transpose_a": swapped, "transpose_b": swapped})
    assert [read_axis(product, 3, index) for index in range(geometry(product).sums)] == ([1, 2] if swapped else [2, 1])
    assert [read_axis(product, 1, index) for index in range(2)] == [0, 0]
    attention = Node("n", "attention", ("q", "k", "v"), ("y",))
    assert [read_axis(attention, 4, index) for index in range(geometry(attention).sums)] == [3, 3]


def test_the_weights_of_a_recurrent_layer_are_no_bias() -> None:
    layer = Node("n", "rnn", ("x", "W", "R", "B"), ("y",))
    assert (weights_of(layer), bias_of(layer)) == (("W", "R"), "")
    assert (read_axis(layer, 3), in_axis(layer), channel_axis(layer, 4)) == (2, 2, 3)
