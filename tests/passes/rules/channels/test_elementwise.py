"""Channels at elementwise ops: operands are tied, parameters go with their channel."""

from __future__ import annotations

from graphs.classes import IMAGE, classes_on, conv, ended, param_of, pinned_on, reasons, weight
from graphs.tiny import Tiny

from prunec.passes.channels import channels


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
