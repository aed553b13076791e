"""What no rule follows pins its channels by name, with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from graphs.classes import IMAGE, conv, ended, param_of, pinned_on, reasons
from graphs.tiny import Tiny

from prunec.passes.channels import channels


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
