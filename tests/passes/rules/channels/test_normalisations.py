"""Channels at normalisations: those per channel let them pass, those over channels pin them."""

from __future__ import annotations

from graphs.classes import IMAGE, classes_on, conv, ended, param_of, pinned_on, weight
from graphs.tiny import Tiny

from prunec.passes.channels import channels


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


def test_a_layer_norm_over_space_lets_channels_pass() -> None:
    t = Tiny()
    a = t.node("layer_norm", [conv(t, t.input(*IMAGE), 3, 4)], ("N", 4, 8, 8), axes=[2, 3])
    graph = ended(t, a, 4)
    assert pinned_on(channels(graph), param_of(graph, 0)) == [False] * 4
