"""Constants through ops that move arrays: pads, concats, slices, gathers, reshapes."""

from __future__ import annotations

import numpy as np
import pytest
from graphs.known import assert_known
from graphs.tiny import NAN, Tiny

from prunec.passes.constants import constants


def test_padding_the_channel_axis_gives_its_value() -> None:
    t = Tiny()
    x = t.input("N", 2, 4, 4)
    pads = [0, 1, 0, 0, 0, 2, 0, 0]
    assert_known(
        t, t.node("pad", [x], ("N", 5, 4, 4), pads=pads, mode="constant", value=0.5), [0.5, NAN, NAN, 0.5, 0.5]
    )


def test_padding_a_lone_last_axis_is_followed_too() -> None:
    t = Tiny()
    x = t.input("N", 4, 4, 2)
    pads = [0, 0, 0, 1, 0, 0, 0, 0]
    assert_known(t, t.node("pad", [x], ("N", 4, 4, 3), pads=pads, mode="constant", value=0), [0, NAN, NAN])


def test_padding_space_keeps_only_channels_that_equal_the_padding() -> None:
    t = Tiny()
    x = t.constant([0.0, 1.0, NAN], 4, 4)
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    assert_known(t, t.node("pad", [x], ("N", 3, 6, 6), pads=pads, mode="constant", value=0), [0, NAN, NAN])
    assert_known(t, t.node("pad", [x], ("N", 3, 6, 6), pads=pads, mode="reflect"), [0, 1, NAN])
    cropped = [0, 0, -1, -1, 0, 0, -1, -1]
    assert_known(t, t.node("pad", [x], ("N", 3, 2, 2), pads=cropped, mode="constant", value=0), [0, 1, NAN])


def test_concat_of_channels_lays_constants_end_to_end() -> None:
    t = Tiny()
    a, b = t.constant([1.0, NAN], "H", "W"), t.input("N", 1, "H", "W")
    assert_known(t, t.node("concat", [a, b, a], ("N", 5, "H", "W"), axis=1), [1, NAN, NAN, 1, NAN])


def test_concat_over_space_keeps_what_agrees() -> None:
    t = Tiny()
    a, b = t.constant([1.0, 2.0], 4, "W"), t.constant([1.0, 3.0], 5, "W")
    joined = t.node("concat", [a, b], ("N", 2, 9, "W"), axis=2)
    pooled = t.node("max_pool", [joined], ("N", 2, 3, "W"), pads=[0] * 4, ceil=False)
    assert_known(t, pooled, [1, NAN])
    open_axis = t.node("concat", [a, b], ("N", 2, 9, None), axis=3)
    assert_known(t, open_axis, None)


def test_slices_splits_and_gathers_pick_constants() -> None:
    t = Tiny()
    x = t.constant([1.0, NAN, 3.0, 4.0], 4, 4)
    assert_known(t, t.node("slice", [x], ("N", 2, 4, 4), axes=[1], starts=[0], ends=[4], steps=[2]), [1, 3])
    first, second = t.split("split", [x], [("N", 1, 4, 4), ("N", 3, 4, 4)], axis=1, sizes=[1, 3])
    assert_known(t, first, [1])
    assert_known(t, second, [NAN, 3, 4])
    assert_known(t, t.node("gather", [x], ("N", 2, 4, 4), axis=1, indices=np.array([3, 1])), [4, NAN])
    assert_known(t, t.node("gather", [x, t.input(2, dtype="int64")], ("N", 2, 4, 4), axis=1, indices=None), None)


def test_flatten_repeats_a_channel_over_its_pixels() -> None:
    t = Tiny()
    x = t.constant([1.0, NAN], 1, 3)
    assert_known(t, t.node("reshape", [x], ("N", 6), shape=[-1, 6]), [1, 1, 1, NAN, NAN, NAN])


@pytest.mark.parametrize(("mode", "expected"), [("CRD", [1, NAN]), ("DCR", [1, 5])])
def test_depth_to_space_needs_a_pixels_channels_to_agree(mode: str, expected: list[float]) -> None:
    t = Tiny()
    channels = [1.0, 1, 1, 1, 5, 5, 5, 6] if mode == "CRD" else [1.0, 5, 1, 5, 1, 5, 1, 5]
    x = t.constant(channels, 4, 4)
    assert_known(t, t.node("depth_to_space", [x], ("N", 2, 8, 8), block=2, mode=mode), expected)


def test_im2col_lets_only_zero_through() -> None:
    t = Tiny()
    x = t.constant([0.0, 2.0], 4, 4)
    assert_known(t, t.node("im2col", [x], ("N", 4, 9), kernel=2), [0, 0, NAN, NAN])


def test_scatter_slice_overwrites_a_stretch() -> None:
    t = Tiny()
    base, source = t.constant([1.0, 2.0, NAN], 4, 4), t.constant([7.0], 4, 4)
    out = t.node("scatter_slice", [base, source], ("N", 3, 4, 4), axis=1, start=1, end=2, step=1)
    assert_known(t, out, [1, 7, NAN])


def test_full_is_known_everywhere() -> None:
    t = Tiny()
    assert_known(t, t.node("full", [], (1, 3, 4, 4), shape=[1, 3, 4, 4], value=2.0), [2])


@pytest.mark.parametrize("value", [0.0, -0.25])
def test_padding_of_an_axis_of_one_is_no_part_of_what_was_there(value: float) -> None:
    """Two constant channels as a split axis of two rows of one, with a position added on both sides of each row."""
    t = Tiny()
    rows = t.node("reshape", [t.constant([2.0, NAN], 4, 4)], ("N", 2, 1, 4, 4), shape=[0, 2, 1, 4, 4])
    y = t.node("pad", [rows], ("N", 2, 3, 4, 4), pads=[0, 0, 1, 0, 0, 0, 0, 1, 0, 0], value=value)
    known = constants(t.graph(y)).of(y)
    assert known is not None
    np.testing.assert_array_equal(known[0, :, :, 0, 0], [[value, 2.0, value], [value, NAN, value]])
