"""Channels at ops over space: pools and activations let them pass, reductions over branches tie their slots."""

from __future__ import annotations

import pytest
from graphs.classes import IMAGE, classes_on, conv, ended, param_of, pinned_on, reasons
from graphs.tiny import Tiny

from prunec.passes.channels import channels


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
