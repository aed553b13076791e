"""Channels at contractions: they end at the operand's axis and begin at the weight's."""

from __future__ import annotations

import numpy as np
import pytest
from graphs.classes import IMAGE, classes_on, conv, ended, param_of, pinned_on, weight
from graphs.tiny import Tiny

from prunec.passes.channels import channels


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
