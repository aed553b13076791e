"""Which channels live or die together: op by op on hand-written graphs, with the exact classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs.tiny import Tiny

from prunec.errors import BadInput
from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses
from prunec.ir.ops import OPS
from prunec.passes.channels import channels
from prunec.passes.groups import dependency_graph, group_classes
from prunec.passes.rules.channels.table import CHANNEL_RULES

IMAGE = ("N", 3, 8, 8)


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype=np.float32)


def conv(t: Tiny, x: str, inp: int, out: int, kernel: int = 1, **options: Any) -> str:
    """Add a 1x1 convolution to ``out`` channels of 8x8; its weight is called after its order (w0, w1, …)."""
    groups = options.get("groups", 1)
    return t.conv(x, weight(out, inp // groups, kernel, kernel), ("N", out, 8, 8), **options)


def ended(t: Tiny, x: str, inp: int) -> Graph:
    """Close a graph with a convolution to two channels, so that ``x`` is not an output itself."""
    return t.graph(conv(t, x, inp, 2))


def param_of(graph: Graph, number: int) -> str:
    """Return the weight of the ``number``-th contraction."""
    found = [n for n in graph.nodes if n.op in ("conv", "conv_transpose", "matmul")]
    return found[number].inputs[1]


def classes_on(classes: ChannelClasses, param: str, axis: int) -> list[int]:
    member = next(m for m in classes.members if (m.param, m.axis) == (param, axis))
    return [int(c) for c in classes.class_of[member.ids]]


def pinned_on(classes: ChannelClasses, param: str, axis: int = 0) -> list[bool]:
    return [bool(p) for p in classes.pinned[classes_on(classes, param, axis)]]


def reasons(classes: ChannelClasses) -> set[tuple[str, str]]:
    """Return (node, reason) of the pins that hold channels."""
    return {(pin.where, pin.reason) for pin in classes.pins if classes.is_channel[classes.class_of[pin.ids]].any()} - {
        (pin.where, pin.reason) for pin in classes.pins if pin.reason == "is an output of the network"
    }


def test_every_rule_says_first_which_of_four_things_it_does() -> None:
    for op in OPS:
        text = (CHANNEL_RULES[op].__doc__ or "").strip()
        first = text.split()[0].strip(".:,;").lower() if text else ""
        assert first in ("move", "unify", "contract", "refuse"), f"{op}: {text!r}"


# --- contract -------------------------------------------------------------------------------------------


def test_a_convolution_ends_its_inputs_channels_and_makes_its_own() -> None:
    t = Tiny()
    graph = ended(t, conv(t, t.input(*IMAGE), 3, 4), 4)
    classes = channels(graph)
    first, last = param_of(graph, 0), param_of(graph, 1)
    assert classes_on(classes, first, 0) == classes_on(classes, last, 1)
    assert len(set(classes_on(classes, first, 0))) == 4
    assert pinned_on(classes, first) == [False] * 4


def test_the_networks_inputs_and_outputs_stay() -> None:
    t = Tiny()
    graph = ended(t, conv(t, t.input(*IMAGE), 3, 4), 4)
    classes = channels(graph)
    assert pinned_on(classes, param_of(graph, 0), 1) == [True] * 3
    assert pinned_on(classes, param_of(graph, 1), 0) == [True] * 2
    assert "is an output of the network" in {pin.reason for pin in classes.pins}


def test_bias_gamma_beta_and_statistics_go_with_their_channel() -> None:
    t = Tiny()
    x = t.conv(t.input(*IMAGE), weight(4, 3, 1, 1), ("N", 4, 8, 8), bias=np.zeros(4))
    graph = ended(t, t.norm(x, [1] * 4, [0] * 4), 4)
    classes = channels(graph)
    expected = classes_on(classes, param_of(graph, 0), 0)
    vectors = [m for m in classes.members if m.axis == 0 and graph.params[m.param].array.ndim == 1]
    assert len(vectors) == 5
    assert all([int(c) for c in classes.class_of[m.ids]] == expected for m in vectors)


def test_kernel_taps_are_no_channels() -> None:
    t = Tiny()
    graph = ended(t, t.conv(t.input(*IMAGE), weight(4, 3, 3, 3), ("N", 4, 8, 8), pad=1), 4)
    classes = channels(graph)
    assert pinned_on(classes, param_of(graph, 0), 2) == [True] * 3
    taps = classes_on(classes, param_of(graph, 0), 2)
    assert not classes.is_channel[taps].any()


def test_a_depthwise_convolution_passes_its_inputs_channels_through() -> None:
    t = Tiny()
    x = conv(t, conv(t, t.input(*IMAGE), 3, 4), 4, 4, groups=4)
    graph = ended(t, x, 4)
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 0), 0) == classes_on(classes, param_of(graph, 1), 0)
    assert classes_on(classes, param_of(graph, 1), 0) == classes_on(classes, param_of(graph, 2), 1)


def test_a_depthwise_multiplier_asks_for_balance_and_ties_nothing() -> None:
    t = Tiny()
    x = conv(t, conv(t, t.input(*IMAGE), 3, 2), 2, 4, groups=2)
    graph = ended(t, x, 4)
    classes = channels(graph)
    made = [c for number in (0, 1) for c in classes_on(classes, param_of(graph, number), 0)]
    assert len(set(made)) == 6
    assert [balance.out_ids.shape for balance in classes.balances] == [(2, 2)]


def test_a_grouped_convolution_asks_for_balance_and_ties_nothing() -> None:
    t = Tiny()
    x = conv(t, conv(t, t.input(*IMAGE), 3, 4), 4, 6, groups=2)
    graph = ended(t, x, 6)
    classes = channels(graph)
    assert len(set(classes_on(classes, param_of(graph, 0), 0) + classes_on(classes, param_of(graph, 1), 0))) == 10
    (balance,) = classes.balances
    assert balance.in_ids.shape == (2, 2)
    assert balance.out_ids.shape == (2, 3)
    assert [int(c) for c in classes.class_of[balance.in_ids.ravel()]] == classes_on(classes, param_of(graph, 0), 0)
    assert pinned_on(classes, param_of(graph, 1), 1) == [True] * 2


def test_a_transposed_convolution_contracts_axis_0_and_makes_axis_1() -> None:
    t = Tiny()
    x = t.conv(
        conv(t, t.input(*IMAGE), 3, 4), weight(4, 5, 2, 2), ("N", 5, 8, 8), op="conv_transpose", bias=np.zeros(5)
    )
    graph = ended(t, x, 5)
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 0), 0) == classes_on(classes, param_of(graph, 1), 0)
    assert classes_on(classes, param_of(graph, 1), 1) == classes_on(classes, param_of(graph, 2), 1)


def test_a_grouped_transposed_convolution_gets_outputs_of_its_own() -> None:
    t = Tiny()
    x = t.conv(conv(t, t.input(*IMAGE), 3, 4), weight(4, 3, 2, 2), ("N", 6, 8, 8), op="conv_transpose", groups=2)
    graph = ended(t, x, 6)
    classes = channels(graph)
    assert len(set(classes_on(classes, param_of(graph, 2), 1))) == 6
    assert pinned_on(classes, param_of(graph, 2), 1) == [False] * 6
    assert len(classes.balances) == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_a_linear_layer_contracts_the_weights_input_axis(transposed: bool) -> None:
    t = Tiny()
    x = t.node("reduce", [conv(t, t.input(*IMAGE), 3, 4)], ("N", 4), kind="mean", axes=[2, 3], keepdims=False)
    shape = (6, 4) if transposed else (4, 6)
    graph = t.graph(t.node("matmul", [x, t.param(weight(*shape), "fc")], ("N", 6), transpose_b=transposed))
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 0), 0) == classes_on(classes, "fc", 1 if transposed else 0)


def test_attention_ties_queries_to_keys_and_passes_values() -> None:
    t = Tiny()
    x = t.input("N", 10, 3)
    q, k, v = (
        t.node("matmul", [x, t.param(weight(3, n), name)], ("N", 10, n)) for name, n in (("q", 4), ("k", 4), ("v", 5))
    )
    y = t.node("attention", [q, k, v], ("N", 10, 5))
    graph = t.graph(t.node("matmul", [y, t.param(weight(5, 2), "out")], ("N", 10, 2)))
    classes = channels(graph)
    assert classes_on(classes, "q", 1) == classes_on(classes, "k", 1)
    assert classes_on(classes, "v", 1) == classes_on(classes, "out", 0)
    assert not any([*pinned_on(classes, "q", 1), *pinned_on(classes, "v", 1)])


def test_a_recurrent_layer_reads_channels_and_keeps_its_state() -> None:
    t = Tiny()
    x = t.node("matmul", [t.input(5, "N", 3), t.param(weight(3, 4), "first")], (5, "N", 4))
    (y,) = t.split("rnn", [x, t.param(weight(1, 8, 4), "W"), t.param(weight(1, 8, 2), "R")], [(5, 1, "N", 2)])
    classes = channels(t.graph(y))
    assert classes_on(classes, "first", 1) == classes_on(classes, "W", 2)
    assert pinned_on(classes, "first", 1) == [False] * 4
    assert pinned_on(classes, "W", 1) == [True] * 8
    assert pinned_on(classes, "R", 2) == [True] * 2


# --- unify ----------------------------------------------------------------------------------------------


def test_a_residual_add_ties_both_branches() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    a, b = conv(t, x, 3, 4), conv(t, x, 3, 4)
    graph = ended(t, t.node("add", [a, b], ("N", 4, 8, 8)), 4)
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 0), 0) == classes_on(classes, param_of(graph, 1), 0)
    assert classes_on(classes, param_of(graph, 0), 0) == classes_on(classes, param_of(graph, 2), 1)


def test_a_gate_of_size_one_in_space_is_tied_channel_by_channel() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    pooled = t.node("reduce", [a], ("N", 4, 1, 1), kind="mean", axes=[2, 3], keepdims=True)
    gate = t.conv(pooled, weight(4, 4, 1, 1), ("N", 4, 1, 1))
    graph = ended(t, t.node("mul", [a, gate], ("N", 4, 8, 8)), 4)
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 0), 0) == classes_on(classes, param_of(graph, 1), 0)


def test_a_map_of_one_channel_hinders_nothing() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    graph = ended(t, t.node("mul", [conv(t, x, 3, 4), conv(t, x, 3, 1)], ("N", 4, 8, 8)), 4)
    assert pinned_on(channels(graph), param_of(graph, 0)) == [False] * 4


def test_a_computed_tensor_without_channels_pins_what_it_meets() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    a = conv(t, x, 3, 3)
    graph = ended(t, t.node("add", [a, x], ("N", 3, 8, 8)), 3)
    classes = channels(graph)
    assert pinned_on(classes, param_of(graph, 0)) == [True] * 3
    ((where, reason),) = reasons(classes)
    assert where == "add1"
    assert "no channels of its own" in reason


def test_layer_scale_and_prelu_slopes_go_with_their_channel() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    a = t.node("mul", [a, t.param(weight(4, 1, 1), "scale")], ("N", 4, 8, 8))
    a = t.node("prelu", [a, t.param(weight(4), "slope")], ("N", 4, 8, 8), axis=1)
    graph = ended(t, a, 4)
    classes = channels(graph)
    expected = classes_on(classes, param_of(graph, 0), 0)
    assert classes_on(classes, "scale", 0) == classes_on(classes, "slope", 0) == expected


def test_one_slope_for_all_channels_ties_nothing() -> None:
    t = Tiny()
    a = t.node("prelu", [conv(t, t.input(*IMAGE), 3, 4), t.param(weight(1), "slope")], ("N", 4, 8, 8), axis=1)
    graph = ended(t, a, 4)
    assert len(set(classes_on(channels(graph), param_of(graph, 0), 0))) == 4


def test_a_group_norm_of_single_channels_is_per_channel() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    a = t.node(
        "group_norm", [a, t.param(weight(4), "g"), t.param(weight(4), "b")], ("N", 4, 8, 8), axis=1, num_groups=4
    )
    graph = ended(t, a, 4)
    classes = channels(graph)
    assert pinned_on(classes, param_of(graph, 0)) == [False] * 4
    assert classes_on(classes, "g", 0) == classes_on(classes, param_of(graph, 0), 0)


# --- move -----------------------------------------------------------------------------------------------


def test_a_concat_lays_channels_end_to_end() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    a, b = conv(t, x, 3, 2), conv(t, x, 3, 3)
    graph = ended(t, t.node("concat", [a, b], ("N", 5, 8, 8), axis=1), 5)
    classes = channels(graph)
    parts = classes_on(classes, param_of(graph, 0), 0) + classes_on(classes, param_of(graph, 1), 0)
    assert classes_on(classes, param_of(graph, 2), 1) == parts


def test_a_concat_over_space_ties_its_operands() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    a, b = conv(t, x, 3, 4), conv(t, x, 3, 4)
    graph = ended(t, t.node("concat", [a, b], ("N", 4, 8, 16), axis=3), 4)
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 0), 0) == classes_on(classes, param_of(graph, 1), 0)


def test_a_split_hands_each_part_its_channels() -> None:
    t = Tiny()
    a, b = t.split("split", [conv(t, t.input(*IMAGE), 3, 5)], [("N", 2, 8, 8), ("N", 3, 8, 8)], axis=1, sizes=[2, 3])
    c = conv(t, b, 3, 3)
    graph = ended(t, t.node("concat", [a, c], ("N", 5, 8, 8), axis=1), 5)
    classes = channels(graph)
    stem = classes_on(classes, param_of(graph, 0), 0)
    assert classes_on(classes, param_of(graph, 1), 1) == stem[2:]
    assert classes_on(classes, param_of(graph, 2), 1)[:2] == stem[:2]


def test_the_halves_of_a_gate_are_tied_slot_by_slot() -> None:
    t = Tiny()
    a, b = t.split("split", [conv(t, t.input(*IMAGE), 3, 4)], [("N", 2, 8, 8)] * 2, axis=1, sizes=[2, 2])
    graph = ended(t, t.node("mul", [a, t.node("sigmoid", [b], ("N", 2, 8, 8))], ("N", 2, 8, 8)), 2)
    first, second, third, fourth = classes_on(channels(graph), param_of(graph, 0), 0)
    assert (first, second) == (third, fourth)
    assert first != second


def test_slices_pass_their_stretch() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 5)
    a = t.node("slice", [a], ("N", 2, 8, 8), axes=[1], starts=[1], ends=[3], steps=[1])
    graph = ended(t, a, 2)
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 1), 1) == classes_on(classes, param_of(graph, 0), 0)[1:3]


@pytest.mark.parametrize(("start", "end", "step"), [(0, 5, 2), (4, None, -2)])
def test_slices_with_a_step_pass_what_they_pick(start: int, end: int | None, step: int) -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 5)
    a = t.node("slice", [a], ("N", 3, 8, 8), axes=[1], starts=[start], ends=[end], steps=[step])
    graph = ended(t, a, 3)
    classes = channels(graph)
    passed = classes_on(classes, param_of(graph, 0), 0)[start:end:step]
    assert classes_on(classes, param_of(graph, 1), 1) == passed


def test_a_gather_permutes_repeats_and_leaves_out() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    graph = ended(t, t.node("gather", [a], ("N", 3, 8, 8), axis=1, indices=np.array([2, 0, 2])), 3)
    classes = channels(graph)
    stem = classes_on(classes, param_of(graph, 0), 0)
    assert classes_on(classes, param_of(graph, 1), 1) == [stem[2], stem[0], stem[2]]
    assert pinned_on(classes, param_of(graph, 0)) == [False] * 4


def test_a_channel_picked_by_its_index_stays() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    one = t.node("gather", [a], ("N", 8, 8), axis=1, indices=np.int64(2))
    one = t.node("reshape", [one], ("N", 1, 8, 8), shape=["N", 1, 8, 8])
    graph = ended(t, t.node("mul", [a, one], ("N", 4, 8, 8)), 4)
    classes = channels(graph)
    assert pinned_on(classes, param_of(graph, 0)) == [False, False, True, False]


def test_computed_indices_pin_what_they_pick_from() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    graph = ended(t, t.node("gather", [a, t.input(3, dtype="int64")], ("N", 3, 8, 8), axis=1), 3)
    assert pinned_on(channels(graph), param_of(graph, 0)) == [True] * 4


def test_flatten_gives_every_pixel_its_channels_id() -> None:
    t = Tiny()
    a = t.conv(t.input("N", 3, 2, 2), weight(3, 3, 1, 1), ("N", 3, 2, 2))
    a = t.node("reshape", [a], ("N", 12), shape=["N", 12])
    graph = t.graph(t.node("matmul", [a, t.param(weight(5, 12), "fc")], ("N", 5), transpose_b=True))
    classes = channels(graph)
    assert classes_on(classes, "fc", 1) == list(np.repeat(classes_on(classes, param_of(graph, 0), 0), 4))


def test_a_split_channel_axis_must_stay_rectangular() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 6)
    a = t.node("reshape", [a], ("N", 2, 3, 8, 8), shape=["N", 2, 3, 8, 8])
    a = t.node("relu", [a], ("N", 2, 3, 8, 8))
    a = t.node("reshape", [a], ("N", 6, 8, 8), shape=["N", 6, 8, 8])
    graph = ended(t, a, 6)
    stem = classes_on(channels(graph), param_of(graph, 0), 0)
    assert stem[:3] == stem[3:]
    assert len(set(stem)) == 3


def test_a_merge_with_the_batch_keeps_channels_that_vary_there_only() -> None:
    t = Tiny()
    a = t.conv(t.input(2, 3, 8, 8), weight(4, 3, 1, 1), (2, 4, 8, 8))
    graph = t.graph(t.node("reshape", [a], (8, 1, 8, 8), shape=[8, 1, 8, 8]))
    classes = channels(graph)
    assert ("reshape1", "is merged with the batch or with an axis of open size") in reasons(classes)


def test_heads_merged_with_the_batch_lose_the_same_slots() -> None:
    t = Tiny()
    x = t.node("matmul", [t.input(2, 5, 3), t.param(weight(3, 6), "w")], (2, 5, 6))
    x = t.node("reshape", [x], (2, 5, 2, 3), shape=[2, 5, 2, 3])
    x = t.node("transpose", [x], (2, 2, 5, 3), perm=[0, 2, 1, 3])
    x = t.node("reshape", [x], (4, 5, 3), shape=[4, 5, 3])
    graph = t.graph(t.node("matmul", [x, t.param(weight(3, 2), "out")], (4, 5, 2)))
    classes = channels(graph)
    slots = classes_on(classes, "out", 0)
    assert classes_on(classes, "w", 1) == slots + slots
    assert pinned_on(classes, "w", 1) == [False] * 6


def test_a_transpose_moves_the_channel_axis() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    a = t.node("transpose", [a], ("N", 8, 8, 4), perm=[0, 2, 3, 1])
    graph = t.graph(t.node("matmul", [a, t.param(weight(4, 2), "fc")], ("N", 8, 8, 2)))
    classes = channels(graph)
    assert classes_on(classes, "fc", 0) == classes_on(classes, param_of(graph, 0), 0)


def test_padded_channels_are_channels_of_their_own() -> None:
    """Option-A shortcuts: the zeros may go with the channels that they are added to."""
    t = Tiny()
    x = t.input(*IMAGE)
    short = t.node("pad", [conv(t, x, 3, 2)], ("N", 4, 8, 8), pads=[0, 1, 0, 0, 0, 1, 0, 0], mode="constant", value=0.0)
    main = conv(t, x, 3, 4)
    graph = ended(t, t.node("add", [short, main], ("N", 4, 8, 8)), 4)
    classes = channels(graph)
    wide = classes_on(classes, param_of(graph, 1), 0)
    assert classes_on(classes, param_of(graph, 0), 0) == wide[1:3]
    assert pinned_on(classes, param_of(graph, 1)) == [False] * 4


def test_reflecting_the_channel_axis_is_refused() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    a = t.node("pad", [a], ("N", 6, 8, 8), pads=[0, 1, 0, 0, 0, 1, 0, 0], mode="reflect")
    assert ("pad1", "is padded in a way that prunec cannot rewrite") in reasons(channels(ended(t, a, 6)))


@pytest.mark.parametrize(("mode", "expected"), [("CRD", [0, 0, 0, 0, 1, 1, 1, 1]), ("DCR", [0, 1] * 4)])
def test_the_channels_of_one_pixel_block_are_tied(mode: str, expected: list[int]) -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 8)
    graph = ended(t, t.node("depth_to_space", [a], ("N", 2, 16, 16), block=2, mode=mode), 2)
    classes = channels(graph)
    stem = classes_on(classes, param_of(graph, 0), 0)
    order = list(dict.fromkeys(stem))
    assert [order.index(c) for c in stem] == expected
    assert classes_on(classes, param_of(graph, 1), 1) == order


@pytest.mark.parametrize(("mode", "expected"), [("CRD", [0, 0, 0, 0, 1, 1, 1, 1]), ("DCR", [0, 1] * 4)])
def test_space_to_depth_repeats_a_channel(mode: str, expected: list[int]) -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 2)
    graph = ended(t, t.node("space_to_depth", [a], ("N", 8, 4, 4), block=2, mode=mode), 8)
    classes = channels(graph)
    stem = classes_on(classes, param_of(graph, 0), 0)
    assert classes_on(classes, param_of(graph, 1), 1) == [stem[i] for i in expected]


def test_unfolding_repeats_a_channel_for_every_tap() -> None:
    t = Tiny()
    a = t.node("im2col", [conv(t, t.input(*IMAGE), 3, 2)], ("N", 8, 49), kernel=4)
    a = t.node("transpose", [a], ("N", 49, 8), perm=[0, 2, 1])
    graph = t.graph(t.node("matmul", [a, t.param(weight(8, 2), "fc")], ("N", 49, 2)))
    classes = channels(graph)
    assert classes_on(classes, "fc", 0) == list(np.repeat(classes_on(classes, param_of(graph, 0), 0), 4))


def test_tiled_channels_are_those_of_the_original() -> None:
    t = Tiny()
    a = t.node("tile", [conv(t, t.input(*IMAGE), 3, 2)], ("N", 4, 8, 8), repeats=[1, 2, 1, 1])
    graph = ended(t, a, 4)
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 1), 1) == classes_on(classes, param_of(graph, 0), 0) * 2


def test_an_expanded_axis_goes_along_with_what_it_meets() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    mask = t.node("expand", [conv(t, x, 3, 1)], ("N", 4, 8, 8), shape=["N", 4, 8, 8])
    graph = ended(t, t.node("mul", [conv(t, x, 3, 4), mask], ("N", 4, 8, 8)), 4)
    assert pinned_on(channels(graph), param_of(graph, 1)) == [False] * 4


def test_a_tensor_of_one_value_goes_along_with_what_it_meets() -> None:
    t = Tiny()
    ones = t.node("full", [], (1, 4, 1, 1), shape=[1, 4, 1, 1], value=1.0)
    graph = ended(t, t.node("add", [conv(t, t.input(*IMAGE), 3, 4), ones], ("N", 4, 8, 8)), 4)
    assert pinned_on(channels(graph), param_of(graph, 0)) == [False] * 4


def test_a_written_slice_carries_the_sources_channels() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    base, source = conv(t, x, 3, 4), conv(t, x, 3, 2)
    written = t.node("scatter_slice", [base, source], ("N", 4, 8, 8), axis=1, start=1, end=3, step=1)
    graph = ended(t, written, 4)
    classes = channels(graph)
    first, second = classes_on(classes, param_of(graph, 0), 0), classes_on(classes, param_of(graph, 1), 0)
    assert classes_on(classes, param_of(graph, 2), 1) == [first[0], *second, first[3]]


@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "resize", "relu", "clip", "identity", "cast"])
def test_channels_pass_pools_resizes_and_activations(op: str) -> None:
    t = Tiny()
    attrs = {
        "pads": [0] * 4,
        "ceil": False,
        "counts_padding": True,
        "keeps_constants": True,
        "min": 0.0,
        "max": 6.0,
        "to": "float32",
    }
    a = t.node(op, [conv(t, t.input(*IMAGE), 3, 4)], ("N", 4, 8, 8), **attrs)
    graph = ended(t, a, 4)
    classes = channels(graph)
    assert classes_on(classes, param_of(graph, 0), 0) == classes_on(classes, param_of(graph, 1), 1)
    assert not any(pinned_on(classes, param_of(graph, 0)))


# --- refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "attrs", "reason"),
    [
        ("group_norm", {"axis": 1, "num_groups": 1}, "GroupNorm averages over the channels of a group"),
        ("layer_norm", {"axes": [1, 2, 3]}, "LayerNorm averages over its channels"),
        ("lrn", {"axis": 1}, "lrn mixes its channels"),
        ("along", {"kind": "softmax", "axes": [1]}, "softmax mixes its channels"),
        ("opaque", {}, "prunec has no rule for opaque"),
        ("opaque", {"reason": "is a loop"}, "is a loop"),
    ],
)
def test_what_mixes_channels_pins_them_by_name(op: str, attrs: dict[str, Any], reason: str) -> None:
    t = Tiny()
    a = t.node(op, [conv(t, t.input(*IMAGE), 3, 4)], ("N", 4, 8, 8), **attrs)
    graph = ended(t, a, 4)
    classes = channels(graph)
    assert pinned_on(classes, param_of(graph, 0)) == [True] * 4
    assert (f"{op}1", reason) in reasons(classes)


@pytest.mark.parametrize("op", ["reduce", "arg_reduce"])
def test_a_reduction_over_channels_pins_them(op: str) -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    total = t.node(op, [a], ("N", 1, 8, 8), kind="max", axes=[1], keepdims=True)
    graph = ended(t, t.node("add", [a, total], ("N", 4, 8, 8)), 4)
    classes = channels(graph)
    assert ("".join([op, "1"]), "max runs over its channels") in reasons(classes)


def test_a_reduction_over_branches_ties_their_slots() -> None:
    """Split attention: what is summed over the branches leaves all of them or none."""
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 6)
    a = t.node("reshape", [a], ("N", 2, 3, 8, 8), shape=["N", 2, 3, 8, 8])
    a = t.node("along", [a], ("N", 2, 3, 8, 8), kind="softmax", axes=[1])
    graph = ended(t, t.node("reduce", [a], ("N", 3, 8, 8), kind="sum", axes=[1], keepdims=False), 3)
    classes = channels(graph)
    slots = classes_on(classes, param_of(graph, 1), 1)
    assert classes_on(classes, param_of(graph, 0), 0) == slots * 2
    assert pinned_on(classes, param_of(graph, 0)) == [False] * 6


def test_a_layer_norm_over_space_lets_channels_pass() -> None:
    t = Tiny()
    a = t.node("layer_norm", [conv(t, t.input(*IMAGE), 3, 4)], ("N", 4, 8, 8), axes=[2, 3])
    graph = ended(t, a, 4)
    assert pinned_on(channels(graph), param_of(graph, 0)) == [False] * 4


def test_reading_a_shape_as_data_pins_the_channels() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    shape = t.node("shape_of", [a], (4,), "int64")
    classes = channels(t.graph(conv(t, a, 4, 2), shape))
    assert ("shape_of1", "its shape is read as data") in reasons(classes)


def test_a_value_of_unknown_rank_pins_what_meets_it() -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 4)
    odd = t.node("opaque", [t.input(*IMAGE)], None)
    graph = t.graph(t.node("add", [a, odd], None))
    assert pinned_on(channels(graph), param_of(graph, 0)) == [True] * 4


# --- the pass ---------------------------------------------------------------------------------------------


def chain() -> Graph:
    t = Tiny()
    a = t.norm(conv(t, t.input(*IMAGE), 3, 4), [1] * 4, [0] * 4)
    return ended(t, conv(t, a, 4, 5), 5)


def test_every_id_is_in_exactly_one_class() -> None:
    classes = channels(chain())
    assert classes.class_of.min() == 0
    assert sorted(set(classes.class_of.tolist())) == list(range(classes.num_classes))
    assert classes.pinned.size == classes.is_channel.size == classes.num_classes


def test_a_kept_parameter_pins_its_channels() -> None:
    graph = chain()
    classes = channels(graph, keep=[param_of(graph, 0)])
    assert pinned_on(classes, param_of(graph, 0)) == [True] * 4
    assert pinned_on(classes, param_of(graph, 1)) == [False] * 5
    assert any(pin.reason == "is kept by request (--keep)" and pin.where == param_of(graph, 0) for pin in classes.pins)


def test_a_kept_node_pins_what_it_computes() -> None:
    graph = chain()
    classes = channels(graph, keep=["conv?"])
    assert pinned_on(classes, param_of(graph, 0)) == [True] * 4
    assert pinned_on(classes, param_of(graph, 1)) == [True] * 5


def test_a_keep_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(BadInput) as error:
        channels(chain(), keep=["layer4.*"])
    assert str(error.value) == (
        "error[bad-input]: the keep pattern 'layer4.*' matches no parameter and no node\n"
        "  do:  use names as `prunec analyze` prints them; * and ? are allowed"
    )


def test_a_node_that_a_backend_cannot_rewrite_is_frozen() -> None:
    graph = chain()
    classes = channels(graph, frozen={"conv0": "cannot be rewritten"})
    assert pinned_on(classes, param_of(graph, 0)) == [True] * 4
    assert ("conv0", "cannot be rewritten") in {(pin.where, pin.reason) for pin in classes.pins}


def test_literals_carry_no_channels() -> None:
    t = Tiny()
    half = t.param(np.float64(0.5), "literal:0.5", literal=True)
    graph = ended(t, t.node("mul", [conv(t, t.input(*IMAGE), 3, 4), half], ("N", 4, 8, 8)), 4)
    classes = channels(graph)
    assert "literal:0.5" not in {m.param for m in classes.members}
    assert pinned_on(classes, param_of(graph, 0)) == [False] * 4


# --- groups and the dependency graph ------------------------------------------------------------------------


def test_groups_gather_classes_that_lie_on_the_same_axes() -> None:
    graph = chain()
    classes = channels(graph)
    groups = group_classes(classes)
    assert [len(group) for group in groups] == [4, 5, 2]
    assert list(groups[0]) == classes_on(classes, param_of(graph, 0), 0)


def test_a_concat_of_two_branches_makes_two_groups() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    joined = t.node("concat", [conv(t, x, 3, 2), conv(t, x, 3, 3)], ("N", 5, 8, 8), axis=1)
    groups = group_classes(channels(ended(t, joined, 5)))
    assert [len(group) for group in groups] == [2, 3, 2]


def test_the_dependency_graph_carries_classes_on_its_edges() -> None:
    graph = chain()
    classes = channels(graph)
    found = dependency_graph(graph, classes)
    assert found.nodes["x0"]["op"] == "input"
    assert found.nodes["conv0"]["op"] == "conv"
    assert found.nodes["output:0"]["op"] == "output"
    assert found.edges["conv0", "batch_norm1"]["classes"] == sorted(classes_on(classes, param_of(graph, 0), 0))
    assert found.edges["x0", "conv0"]["classes"] == []
    assert found.edges["batch_norm1", "conv2"]["shape"] == ("N", 4, 8, 8)
