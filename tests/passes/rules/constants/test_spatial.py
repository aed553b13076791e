"""Constants through pools, resizing, sampling and reductions."""

from __future__ import annotations

import numpy as np
import pytest
from graphs.known import assert_known
from graphs.tiny import NAN, Tiny


def test_pools_keep_uniform_channels() -> None:
    t = Tiny()
    x = t.constant([2.0, 0.0, NAN], 8, 8)
    assert_known(t, t.node("max_pool", [x], ("N", 3, 4, 4), pads=[1] * 4, ceil=True), [2, 0, NAN])
    assert_known(t, t.node("avg_pool", [x], ("N", 3, 4, 4), pads=[1] * 4, counts_padding=False), [2, 0, NAN])
    assert_known(t, t.node("avg_pool", [x], ("N", 3, 4, 4), pads=[1] * 4, counts_padding=True), [NAN, 0, NAN])
    assert_known(t, t.node("avg_pool", [x], ("N", 3, 4, 4), pads=[0] * 4, counts_padding=True), [2, 0, NAN])
    assert_known(
        t, t.node("avg_pool", [x], ("N", 3, 4, 4), pads=[0] * 4, counts_padding=True, ceil=True), [NAN, 0, NAN]
    )


def test_resize_keeps_constants_unless_it_extrapolates() -> None:
    t = Tiny()
    x = t.constant([2.0, NAN], 8, 8)
    assert_known(t, t.node("resize", [x], ("N", 2, 16, 16), keeps_constants=True), [2, NAN])
    assert_known(t, t.node("resize", [x], ("N", 2, 16, 16), keeps_constants=False), None)


def test_sampling_outside_the_map_lets_only_zero_through() -> None:
    t = Tiny()
    x, grid = t.constant([2.0, 0.0], 8, 8), t.input("N", 4, 4, 2)
    assert_known(t, t.node("sample", [x, grid], ("N", 2, 4, 4)), [NAN, 0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [2, NAN]), ("max", [2, NAN]), ("min", [2, NAN]), ("sum", [24, NAN]), ("l1", [24, NAN]),
        ("l2", [48**0.5, NAN]), ("prod", [2**12, NAN]), ("var", [0, NAN]), ("std", [0, NAN]),
        ("logsumexp", [2 + np.log(12), NAN]), ("any", [1, NAN]), ("all", [1, NAN]),
    ],
)  # fmt: skip
def test_reductions_over_space_count_the_pixels(kind: str, expected: list[float]) -> None:
    t = Tiny()
    x = t.constant([2.0, NAN], 3, 4)
    assert_known(t, t.node("reduce", [x], ("N", 2), kind=kind, axes=[2, 3], keepdims=False), expected)


def test_reductions_over_an_open_axis_know_only_what_does_not_depend_on_its_size() -> None:
    t = Tiny()
    x = t.constant([2.0, 0.0, NAN], "H", 4)
    assert_known(t, t.node("reduce", [x], ("N", 3, 1, 1), kind="mean", axes=[2, 3]), [2, 0, NAN])
    assert_known(t, t.node("reduce", [x], ("N", 3, 1, 1), kind="sum", axes=[2, 3]), [NAN, 0, NAN])


def test_reductions_over_channels_need_them_all() -> None:
    t = Tiny()
    assert_known(t, t.node("reduce", [t.constant([1.0, 5.0], 4)], ("N", 1, 4), kind="mean", axes=[1]), [3])
    assert_known(t, t.node("reduce", [t.constant([1.0, NAN], 4)], ("N", 1, 4), kind="mean", axes=[1]), None)
    spread = t.node("reduce", [t.constant([1.0, 5.0], 4)], ("N", 1, 4), kind="var", axes=[1], correction=1)
    assert_known(t, spread, [8])
