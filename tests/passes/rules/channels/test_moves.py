"""Channels through ops that move arrays: concats, splits, gathers, reshapes, pads, pixel blocks."""

from __future__ import annotations

import numpy as np
import pytest
from graphs.classes import IMAGE, classes_on, conv, ended, param_of, pinned_on, reasons, weight
from graphs.tiny import Tiny

from prunec.passes.channels import channels


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


BY_PIXEL = pytest.mark.parametrize(("mode", "expected"), [("CRD", [0, 0, 0, 0, 1, 1, 1, 1]), ("DCR", [0, 1] * 4)])
"""Mode -> the channel of the large map that each of the eight channels of pixels belongs to."""


@BY_PIXEL
def test_the_channels_of_one_pixel_block_are_tied(mode: str, expected: list[int]) -> None:
    t = Tiny()
    a = conv(t, t.input(*IMAGE), 3, 8)
    graph = ended(t, t.node("depth_to_space", [a], ("N", 2, 16, 16), block=2, mode=mode), 2)
    classes = channels(graph)
    stem = classes_on(classes, param_of(graph, 0), 0)
    order = list(dict.fromkeys(stem))
    assert [order.index(c) for c in stem] == expected
    assert classes_on(classes, param_of(graph, 1), 1) == order


@BY_PIXEL
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
