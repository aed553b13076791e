"""Liveness: what is read, rule by rule on hand-written graphs, and against PyTorch's gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from graphs.tiny import NAN, Tiny
from graphs.traced import run, silenced

from prunec.passes.constants import constants
from prunec.passes.liveness import liveness

ATTRS = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "conv_groups": 1}


def live(t: Tiny, name: str, *outputs: str) -> list[bool]:
    """Return which elements of a value's abstract array are live, flat."""
    graph = t.graph(*outputs)
    return [bool(element) for element in liveness(graph, constants(graph)).of(name).ravel()]


def selected(t: Tiny, x: str, channels: list[int], shape: tuple[Any, ...], axis: int = 1) -> str:
    """Return an output that reads only some channels of ``x``."""
    out = tuple(len(channels) if i == axis else size for i, size in enumerate(shape))
    return t.node("gather", [x], out, axis=axis, indices=np.array(channels))


def test_outputs_are_live_and_what_they_do_not_reach_is_dead() -> None:
    t = Tiny()
    x, y = t.input(1, 3), t.input(1, 3)
    out = t.node("relu", [x], (1, 3))
    t.node("relu", [y], (1, 3))
    assert live(t, out, out) == [True]
    assert live(t, x, out) == [True]
    assert live(t, y, out) == [False]


def test_a_graph_input_that_is_an_output_is_live() -> None:
    t = Tiny()
    x = t.input(1, 3)
    assert live(t, x, x) == [True]


# --- contractions -----------------------------------------------------------------------------------


def test_conv_does_not_read_a_channel_whose_taps_are_all_zero() -> None:
    t = Tiny()
    x = t.input("N", 3, 8, 8)
    weight = np.ones((2, 3, 3, 3))
    weight[:, 1] = 0
    assert live(t, x, t.conv(x, weight, ("N", 2, 6, 6))) == [True, False, True]


def test_conv_reads_for_its_needed_outputs_only() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    y = t.conv(x, np.eye(2).reshape(2, 2, 1, 1), ("N", 2, 8, 8))
    assert live(t, x, selected(t, y, [1], ("N", 2, 8, 8))) == [False, True]


def test_grouped_conv_reads_the_groups_of_its_needed_outputs() -> None:
    t = Tiny()
    x = t.input("N", 4, 8, 8)
    y = t.conv(x, np.ones((2, 2, 1, 1)), ("N", 2, 8, 8), groups=2)
    assert live(t, x, selected(t, y, [0], ("N", 2, 8, 8))) == [True, True, False, False]


def test_depthwise_conv_reads_channel_by_channel() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    y = t.conv(x, np.ones((4, 1, 3, 3)), ("N", 4, 6, 6), groups=2)
    assert live(t, x, selected(t, y, [2], ("N", 4, 6, 6))) == [False, True]


def test_conv_transpose_reads_along_its_weights_first_axis() -> None:
    t = Tiny()
    x = t.input("N", 3, 8, 8)
    weight = np.ones((3, 2, 2, 2))
    weight[2] = 0
    weight[0, 1] = 0
    y = t.conv(x, weight, ("N", 2, 9, 9), op="conv_transpose")
    assert live(t, x, y) == [True, True, False]
    assert live(t, x, selected(t, y, [1], ("N", 2, 9, 9))) == [False, True, False]


def test_conv_with_a_computed_weight_reads_everything() -> None:
    t = Tiny()
    x, weight = t.input("N", 2, 8, 8), t.input(2, 2, 1, 1)
    y = t.node("conv", [x, weight, ""], ("N", 2, 8, 8), **ATTRS)
    out = selected(t, y, [0], ("N", 2, 8, 8))
    assert live(t, x, out) == [True]
    assert live(t, weight, out) == [True]


def test_conv_sees_through_a_weight_made_of_parameters() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    gain = t.param(np.array([1.0, 0.0]).reshape(1, 2, 1, 1))
    weight = t.node("mul", [t.param(np.ones((3, 2, 1, 1))), gain], (3, 2, 1, 1))
    assert live(t, x, t.node("conv", [x, weight, ""], ("N", 3, 8, 8), **ATTRS)) == [True, False]


@pytest.mark.parametrize("transposed", [False, True])
def test_matmul_does_not_read_a_feature_whose_weights_are_all_zero(transposed: bool) -> None:
    t = Tiny()
    x = t.input("N", 7, 3)
    weight = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    y = t.node("matmul", [x, t.param(weight.T if transposed else weight)], ("N", 7, 2), transpose_b=transposed)
    assert live(t, x, y) == [True, False, True]
    assert live(t, x, selected(t, y, [0], ("N", 7, 2), axis=2)) == [True, False, False]


def test_matmul_of_activations_does_not_read_what_meets_a_zero() -> None:
    t = Tiny()
    a = t.constant([NAN, 0.0], 4, batch=1)  # row 1 is zero
    b = t.input(1, 2, 5)
    y = t.node("matmul", [a, b], (1, 4, 5), transpose_a=True)
    assert live(t, b, y) == [True, False]
    assert live(t, a, selected(t, y, [3], (1, 4, 5))) == [False, False, False, True]


def test_matmul_reads_the_columns_that_are_needed() -> None:
    t = Tiny()
    a, b = t.input(2, 4, 3), t.input(2, 3, 2)
    y = t.node("matmul", [a, b], (2, 4, 2))
    assert live(t, b, selected(t, y, [1], (2, 4, 2), axis=2)) == [False, True]


def test_attention_reads_the_value_channels_that_are_needed() -> None:
    t = Tiny()
    q, k, v = t.input(1, 6, 4), t.input(1, 6, 4), t.input(1, 6, 3)
    y = t.node("attention", [q, k, v, ""], (1, 6, 3))
    out = selected(t, y, [2], (1, 6, 3), axis=2)
    assert live(t, v, out) == [False, False, True]
    assert live(t, q, out) == [True]


# --- constants --------------------------------------------------------------------------------------


def test_what_computes_a_constant_is_dead() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    y = t.norm(x, [0, 1], [1, 1])
    assert live(t, y, y) == [True]
    assert live(t, x, y) == [False, True]


def test_what_a_constant_follows_from_is_live_where_it_is_constant_itself() -> None:
    t = Tiny()
    x = t.constant([NAN, 2.0], 8, 8)
    y = t.conv(x, np.array([0.0, 3.0]).reshape(1, 2, 1, 1), ("N", 1, 8, 8))
    # The output is 6 for any input, and no longer if channel 1 changed.
    assert live(t, x, y) == [False, True]


def test_a_branch_that_is_constant_throughout_is_dead() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    hidden = t.conv(x, np.ones((2, 2, 3, 3)), ("N", 2, 8, 8), pad=1)
    branch = t.norm(hidden, [0, 0], [1, 2])
    out = t.node("add", [x, branch], ("N", 2, 8, 8))
    assert live(t, hidden, out) == [False]
    assert live(t, branch, out) == [True]
    assert live(t, x, out) == [True]


def test_what_a_zero_gates_is_dead() -> None:
    t = Tiny()
    zero, x = t.constant([0.0, 3.0], 8, 8), t.input("N", 2, 8, 8)
    assert live(t, x, t.node("mul", [x, zero], ("N", 2, 8, 8))) == [False, True]


# --- elementwise and normalisation ------------------------------------------------------------------


def test_broadcast_operands_are_read_where_any_of_their_copies_is() -> None:
    t = Tiny()
    x, row, column = t.input("N", 3, 8, 8), t.input(1, 3, 1, 1), t.input("N", 1, 8, 8)
    y = t.node("add", [t.node("mul", [x, row], ("N", 3, 8, 8)), column], ("N", 3, 8, 8))
    out = selected(t, y, [1], ("N", 3, 8, 8))
    assert live(t, x, out) == live(t, row, out) == [False, True, False]
    assert live(t, column, out) == [True]


def test_an_operand_of_lower_rank_is_read_along_its_own_axes() -> None:
    t = Tiny()
    x, bias = t.input("N", 8, 3), t.input(3)
    y = t.node("add", [x, bias], ("N", 8, 3))
    assert live(t, bias, selected(t, y, [2], ("N", 8, 3), axis=2)) == [False, False, True]


def test_where_reads_the_choice_that_the_condition_takes() -> None:
    t = Tiny()
    condition = t.param(np.array([True, False, True]).reshape(3, 1, 1))
    a, b = t.input("N", 3, 4, 4), t.input("N", 3, 4, 4)
    y = t.node("where", [condition, a, b], ("N", 3, 4, 4))
    assert live(t, a, y) == [True, False, True]
    assert live(t, b, y) == [False, True, False]


def test_an_open_condition_reads_both_choices() -> None:
    t = Tiny()
    condition, a, b = t.input("N", 3, 4, 4), t.input("N", 3, 4, 4), t.input("N", 3, 4, 4)
    y = t.node("where", [condition, a, b], ("N", 3, 4, 4))
    assert live(t, a, y) == live(t, b, y) == live(t, condition, y) == [True]


def test_norms_read_all_that_they_average_over() -> None:
    t = Tiny()
    x = t.input("N", 4, 8)
    shape = ("N", 4, 8)
    batch = selected(t, t.norm(x, [1] * 4, [0] * 4, training=True), [1], shape)
    instance = selected(t, t.node("instance_norm", [x], shape, axis=1, eps=1e-5), [1], shape)
    group = selected(t, t.node("group_norm", [x], shape, axis=1, num_groups=2, eps=1e-5), [1], shape)
    layer = selected(t, t.node("layer_norm", [x], shape, axes=[1, 2], eps=1e-5), [1], shape)
    lrn = selected(t, t.node("lrn", [x], shape, axis=1), [1], shape)
    assert live(t, x, batch) == live(t, x, instance) == [False, True, False, False]
    assert live(t, x, group) == [True, True, False, False]
    assert live(t, x, layer) == live(t, x, lrn) == [True]
    position = selected(t, t.norm(x, [1] * 4, [0] * 4, training=True), [5], shape, axis=2)
    assert live(t, x, position) == [True]


def test_softmax_and_argmax_read_their_axis_and_reductions_read_what_they_reduce() -> None:
    t = Tiny()
    x = t.input("N", 3, 8)
    softmax = selected(t, t.node("along", [x], ("N", 3, 8), kind="softmax", axes=[1]), [1], ("N", 3, 8))
    mean = selected(t, t.node("reduce", [x], ("N", 3), kind="mean", axes=[2], keepdims=False), [1], ("N", 3))
    arg = selected(t, t.node("arg_reduce", [x], ("N", 3, 1), kind="argmax", axes=[2], keepdims=True), [1], ("N", 3, 1))
    assert live(t, x, softmax) == [True]
    assert live(t, x, mean) == live(t, x, arg) == [False, True, False]


def test_an_op_with_several_outputs_reads_for_each() -> None:
    t = Tiny()
    x = t.input("N", 3, 8)
    _, indices = t.split("along", [x], [("N", 3, 8), ("N", 3, 8)], kind="sort", axes=[2])
    assert live(t, x, selected(t, indices, [1], ("N", 3, 8))) == [False, True, False]


# --- movement ---------------------------------------------------------------------------------------


def test_slices_and_splits_read_their_stretch() -> None:
    t = Tiny()
    x = t.input("N", 4, 8, 8)
    cut = t.node("slice", [x], ("N", 2, 8, 8), axes=[1], starts=[0], ends=[4], steps=[2])
    first, second = t.split("split", [x], [("N", 1, 8, 8), ("N", 3, 8, 8)], axis=1, sizes=[1, 3])
    assert live(t, x, cut) == [True, False, True, False]
    assert live(t, x, first) == [True, False, False, False]
    assert live(t, x, first, second) == [True]
    assert live(t, x, selected(t, second, [0], ("N", 3, 8, 8))) == [False, True, False, False]


def test_gather_with_one_index_reads_one_channel() -> None:
    t = Tiny()
    x = t.input("N", 3, 8)
    assert live(t, x, t.node("gather", [x], ("N", 8), axis=1, indices=np.int64(2))) == [False, False, True]
    computed = t.node("gather", [x, t.input(2, dtype="int64")], ("N", 2, 8), axis=1, indices=None)
    assert live(t, x, computed) == [True]


def test_a_need_behind_a_scalar_gather_moves_back_by_one_axis() -> None:
    t = Tiny()
    x = t.input("N", 2, 3)
    row = t.node("gather", [x], ("N", 3), axis=1, indices=np.int64(1))
    assert live(t, x, selected(t, row, [2], ("N", 3))) == [False, False, False, False, False, True]


def test_concat_reads_each_input_in_its_stretch() -> None:
    t = Tiny()
    a, b = t.input("N", 2, 8, 8), t.input("N", 2, 8, 8)
    y = t.node("concat", [a, b], ("N", 4, 8, 8), axis=1)
    out = selected(t, y, [0, 2, 3], ("N", 4, 8, 8))
    assert live(t, a, out) == [True, False]
    assert live(t, b, out) == [True]


def test_flatten_reads_the_channel_of_each_needed_feature() -> None:
    t = Tiny()
    x = t.input("N", 3, 2, 2)
    flat = t.node("reshape", [x], ("N", 12), shape=[-1, 12])
    weight = np.zeros((1, 12))
    weight[0, 4:8] = 1
    assert live(t, x, t.node("matmul", [flat, t.param(weight)], ("N", 1), transpose_b=True)) == [False, True, False]


def test_channel_shuffle_carries_needs_back_to_their_channels() -> None:
    t = Tiny()
    x = t.input("N", 4, "H", "W")
    split = t.node("reshape", [x], ("N", 2, 2, "H", "W"), shape=[0, 2, 2, 0, 0])
    swapped = t.node("transpose", [split], ("N", 2, 2, "H", "W"), perm=[0, 2, 1, 3, 4])
    y = t.node("reshape", [swapped], ("N", 4, "H", "W"), shape=[0, 4, 0, 0])
    assert live(t, x, selected(t, y, [0, 1], ("N", 4, "H", "W"))) == [True, False, True, False]


def test_transpose_permutes_needs_back() -> None:
    t = Tiny()
    x = t.input("N", 3, 4, 5)
    y = t.node("transpose", [x], ("N", 4, 5, 3), perm=[0, 2, 3, 1])
    assert live(t, x, selected(t, y, [1], ("N", 4, 5, 3), axis=3)) == [False, True, False]


def test_padding_is_not_read_and_cropped_channels_are_dead() -> None:
    t = Tiny()
    x = t.input("N", 3, 8, 8)
    grown = t.node("pad", [x], ("N", 5, 8, 8), pads=[0, 1, 0, 0, 0, 1, 0, 0], mode="constant", value=0.0)
    cropped = t.node("pad", [x], ("N", 2, 8, 8), pads=[0, -1, 0, 0, 0, 0, 0, 0], mode="constant", value=0.0)
    assert live(t, x, selected(t, grown, [0, 1], ("N", 5, 8, 8))) == [True, False, False]
    assert live(t, x, cropped) == [False, True, True]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("CRD", [False, False, False, False, True, True, True, True]), ("DCR", [False, True] * 4)],
)
def test_depth_to_space_reads_the_channels_of_a_pixel(mode: str, expected: list[bool]) -> None:
    t = Tiny()
    x = t.input("N", 8, "H", "W")
    y = t.node("depth_to_space", [x], ("N", 2, "2H", "2W"), block=2, mode=mode)
    assert live(t, x, selected(t, y, [1], ("N", 2, "2H", "2W"))) == expected


def test_space_to_depth_reads_the_channel_of_a_needed_block() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    y = t.node("space_to_depth", [x], ("N", 8, 4, 4), block=2, mode="CRD")
    assert live(t, x, selected(t, y, [5], ("N", 8, 4, 4))) == [False, True]


def test_tile_reads_what_any_copy_needs() -> None:
    t = Tiny()
    x = t.input("N", 2, 8)
    y = t.node("tile", [x], ("N", 4, 8), repeats=[1, 2, 1])
    assert live(t, x, selected(t, y, [3], ("N", 4, 8))) == [False, True]


def test_im2col_reads_the_channel_of_a_needed_tap() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    y = t.node("im2col", [x], ("N", 8, 49), kernel=4)
    assert live(t, x, selected(t, y, [6], ("N", 8, 49))) == [False, True]


def test_scatter_slice_does_not_read_what_it_overwrites() -> None:
    t = Tiny()
    base, source = t.input("N", 4, 8), t.input("N", 2, 8)
    y = t.node("scatter_slice", [base, source], ("N", 4, 8), axis=1, start=0, end=2, step=1)
    assert live(t, base, y) == [False, False, True, True]
    out = selected(t, y, [1, 3], ("N", 4, 8))
    assert live(t, source, out) == [False, True]
    assert live(t, base, out) == [False, False, False, True]


def test_expand_reads_what_any_copy_needs() -> None:
    t = Tiny()
    x = t.input(3, 1)
    y = t.node("expand", [x], ("N", 3, 8), shape=["N", 3, 8])
    assert live(t, x, selected(t, y, [0], ("N", 3, 8))) == [True, False, False]


def test_pools_and_resizes_read_the_channels_that_are_needed() -> None:
    t = Tiny()
    x, grid = t.input("N", 2, 8, 8), t.input("N", 4, 4, 2)
    pooled = t.node("avg_pool", [x], ("N", 2, 4, 4), pads=[0] * 4, counts_padding=False)
    sampled = t.node("sample", [x, grid], ("N", 2, 4, 4))
    for y in (pooled, sampled):
        out = selected(t, y, [1], ("N", 2, 4, 4))
        assert live(t, x, out) == [False, True]
    assert live(t, grid, sampled) == [True]


# --- the rest ---------------------------------------------------------------------------------------


def test_a_shape_is_read_without_its_elements() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    assert live(t, x, t.node("shape_of", [x], (4,), "int64")) == [False]


def test_an_opaque_op_reads_everything_when_needed_or_when_it_has_effects() -> None:
    t = Tiny()
    x, y, z = t.input("N", 2), t.input("N", 2), t.input("N", 2)
    needed = t.node("opaque", [x], ("N", 2))
    t.node("opaque", [y], ("N", 2))
    t.node("opaque", [z], ("N", 2), side_effects=True)
    w = t.input("N", 2)
    t.split("opaque", [w], [])  # what gives nothing is there for its effects
    assert live(t, w, needed) == [True]
    assert live(t, x, needed) == [True]
    assert live(t, y, needed) == [False]
    assert live(t, z, needed) == [True]


def test_a_value_of_unknown_rank_is_read_in_full() -> None:
    t = Tiny()
    x = t.input("N", 2, 8)
    y = t.node("reshape", [x], None)
    assert live(t, x, y) == [True]
    assert live(t, y, y) == [True]


def test_a_dead_end_reads_nothing() -> None:
    t = Tiny()
    x = t.input("N", 2, 8, 8)
    y = t.conv(x, np.ones((2, 2, 1, 1)), ("N", 2, 8, 8))
    out = t.conv(y, np.zeros((2, 2, 1, 1)), ("N", 2, 8, 8), bias=[1, 2])
    assert live(t, y, out) == [False]
    assert live(t, x, out) == [False]


@pytest.mark.parametrize("seed", range(8))
def test_dead_elements_that_are_not_constant_have_no_gradient(seed: int) -> None:
    net = silenced(seed).requires_grad_(False)
    graph, activations, output = run(net, torch.randn(2, 3, 16, 16, requires_grad=True))
    output.square().sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    facts = constants(graph)
    found = liveness(graph, facts)
    checked = 0
    for name, value in activations.items():
        if value.grad is None:
            continue
        shape = tuple(value.shape)
        constant = facts.of(name)
        dead = ~np.broadcast_to(found.of(name), shape)
        if constant is not None:
            dead = dead & np.isnan(np.broadcast_to(constant, shape))
        assert not value.grad.numpy()[dead].any(), name
        checked += int(dead.sum())
    assert checked > 1000
