"""Channel ids: fields, ties, pins, rectangles and the solved classes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from prunec.errors import InternalError
from prunec.ir.graph import Node
from prunec.ir.labels import ChannelClasses, Kept, Label, Member, Ties, distinct, smallest_tied, spread, varying


def node(name: str = "n") -> Node:
    return Node(name, "conv", (), (), source="Conv", origin=name)


def solved(ties: Ties, **labels: Label) -> ChannelClasses:
    return ties.solve(labels, [])


def partition(classes: ChannelClasses, *ids: int) -> list[list[int]]:
    """Return the given ids, gathered by class, in order of their first id."""
    found: dict[int, list[int]] = {}
    for number in ids:
        found.setdefault(int(classes.class_of[number]), []).append(number)
    return list(found.values())


def test_ids_are_fresh_and_start_at_one() -> None:
    ties = Ties()
    np.testing.assert_array_equal(ties.fresh(3), [1, 2, 3])
    np.testing.assert_array_equal(ties.fresh(2), [4, 5])


def test_a_label_along_an_axis_varies_there_only() -> None:
    label = Label.along((2, 3, 4, 4), 1, np.array([1, 2, 3]))
    (field,) = label.fields
    assert field.shape == (1, 3, 1, 1)
    assert varying(field) == (1,)
    assert label.on(1) == (field,)
    assert label.on(0) == ()
    assert label.without([field]).fields == ()


def test_an_axis_of_one_channel_stays_unlabelled() -> None:
    assert Label.along((2, 1, 4), 1, np.array([7])).fields == ()


def test_every_id_is_a_class_of_its_own_without_ties() -> None:
    ties = Ties()
    ids = ties.fresh(3)
    classes = solved(ties)
    assert partition(classes, *ids.tolist()) == [[1], [2], [3]]
    assert classes.num_classes == 4


def test_unified_ids_share_a_class_and_ties_are_transitive() -> None:
    ties = Ties()
    a, b, c = ties.fresh(2), ties.fresh(2), ties.fresh(2)
    ties.unify(a, b)
    ties.unify(b, c[::-1])
    assert partition(solved(ties), *range(1, 7)) == [[1, 3, 6], [2, 4, 5]]


def test_unification_broadcasts() -> None:
    ties = Ties()
    wide, one = ties.fresh(3), ties.fresh(1)
    ties.unify(wide, one)
    assert partition(solved(ties), 1, 2, 3, 4) == [[1, 2, 3, 4]]


def test_class_numbers_follow_the_order_of_ids() -> None:
    ties = Ties()
    ids = ties.fresh(4)
    ties.unify(ids[:1], ids[3:])
    assert solved(ties).class_of.tolist() == [0, 1, 2, 3, 1]


def test_an_id_that_meets_no_channel_is_pinned_with_the_reason() -> None:
    ties = Ties()
    ids = ties.fresh(3)
    ties.node = node("conv1")
    ties.unify(ids, np.array([0, 9, 0]) * 0 + np.array([0, ids[1], 0]), "meets nothing")
    classes = solved(ties)
    assert classes.pinned[classes.class_of[ids]].tolist() == [True, False, True]
    (pin,) = classes.pins
    assert (pin.where, pin.reason, pin.ids.tolist()) == ("conv1", "meets nothing", [1, 3])


def test_a_pin_holds_the_whole_class() -> None:
    ties = Ties()
    a, b = ties.fresh(2), ties.fresh(2)
    ties.unify(a, b)
    ties.pin(b[:1], "stays")
    classes = solved(ties)
    assert classes.pinned[classes.class_of[a]].tolist() == [True, False]


def test_no_channel_is_pinned_and_never_tied() -> None:
    ties = Ties()
    ids = ties.fresh(2)
    ties.unify(ids, np.zeros(2, dtype=np.int64))
    classes = solved(ties)
    assert classes.pinned[0]
    assert not classes.is_channel[0]
    assert 0 not in classes.class_of[1:]


def test_pinning_nothing_records_nothing() -> None:
    ties = Ties()
    ties.pin([], "no ids")
    ties.pin(np.zeros((1, 3), dtype=np.int64), "no channels")
    assert solved(ties).pins == ()


def test_tying_along_axes_keeps_one_id_per_index() -> None:
    ties = Ties()
    field = ties.fresh(6).reshape(1, 2, 3)
    head = ties.tie_along(field, [2])
    assert head.shape == (1, 1, 3)
    assert partition(solved(ties), *range(1, 7)) == [[1, 4], [2, 5], [3, 6]]


def test_tying_along_all_varying_axes_changes_nothing() -> None:
    ties = Ties()
    field = ties.fresh(3).reshape(1, 3)
    assert ties.tie_along(field, [1]) is field


def test_a_split_axis_ties_the_slots_of_its_longest_axis() -> None:
    ties = Ties()
    ties.node = node()
    field = ties.fresh(6).reshape(1, 2, 3)
    ties.rectangle(field)
    assert partition(solved(ties), *range(1, 7)) == [[1, 4], [2, 5], [3, 6]]


def test_a_split_axis_whose_ids_are_rectangular_already_is_left_alone() -> None:
    ties = Ties()
    ties.node = node()
    field = ties.fresh(6).reshape(1, 2, 3)
    ties.rectangle(field)
    ties.unify(field, field[:, :, :1])  # every row is one class
    assert partition(solved(ties), *range(1, 7)) == [[1, 2, 3], [4, 5, 6]]


def test_rectangles_that_share_ids_are_solved_together() -> None:
    ties = Ties()
    ties.node = node()
    ids = ties.fresh(4)
    ties.rectangle(ids.reshape(1, 2, 2))
    other = ties.fresh(4)
    ties.unify(ids, other[::-1])
    ties.rectangle(other.reshape(1, 2, 2))
    classes = solved(ties)
    assert partition(classes, *range(1, 9)) == [[1, 3, 6, 8], [2, 4, 5, 7]]


def test_a_split_axis_beside_what_has_no_channels_ties_the_rest_of_each_slot() -> None:
    ties = Ties()
    ties.node = node("view")
    ids = ties.fresh(3)
    ties.rectangle(np.array([[[0, 1], [2, 3]]]))
    classes = solved(ties)
    assert partition(classes, *ids.tolist()) == [[1, 3], [2]]
    assert classes.pinned[classes.class_of[ids]].tolist() == [False, True, False]
    (pin,) = classes.pins
    assert (pin.where, pin.reason) == ("view", "shares a slot with positions that are no channels")


def test_a_row_that_is_pinned_and_a_free_one_are_no_rectangle() -> None:
    """Three slots of which one row stays anyway: none of the other row may go alone."""
    ties = Ties()
    ties.node = node()
    field = ties.fresh(6).reshape(1, 2, 3)
    ties.pin(field[:, :1], "stays")
    ties.rectangle(field)
    classes = solved(ties)
    assert classes.pinned[classes.class_of[field]].all()


def test_what_stays_of_a_rectangle_is_one_whatever_goes() -> None:
    """Over fields at random, partly labelled, pinned and tied: it ends, and every keep mask leaves a rectangle."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        ties = Ties()
        ties.node = node()
        pool = np.append(ties.fresh(int(rng.integers(2, 14))), np.zeros(int(rng.integers(0, 3)), np.int64))
        fields = []
        for _ in range(int(rng.integers(1, 4))):
            shape = tuple(rng.integers(2, 4, int(rng.integers(2, 4))))
            fields.append(rng.choice(pool, shape))
            ties.rectangle(fields[-1])
        ties.pin(rng.choice(pool, 2), "stays")
        ties.unify(rng.choice(pool, 2), rng.choice(pool, 2))
        classes = solved(ties)
        keep = (rng.random(classes.num_classes) < 0.5) | classes.pinned
        for field in fields:
            kept = keep[classes.class_of[field]]
            along = [kept.any(axis=tuple(a for a in range(kept.ndim) if a != axis)) for axis in range(kept.ndim)]
            np.testing.assert_array_equal(kept, functools.reduce(np.logical_and.outer, along))


def test_channels_are_marked_by_contractions_only() -> None:
    ties = Ties()
    channels, taps = ties.fresh(2), ties.fresh(3)
    ties.channel(channels)
    classes = solved(ties)
    assert classes.is_channel[classes.class_of[channels]].all()
    assert not classes.is_channel[classes.class_of[taps]].any()


def test_what_stays_along_an_axis_follows_the_keep_mask() -> None:
    ties = Ties()
    ids = ties.fresh(4)
    label = Label.along((2, 4, 8), 1, ids)
    classes = ties.solve({"x": label}, [Member("w", 0, ids)])
    keep = np.ones(classes.num_classes, dtype=bool)
    assert classes.keep_along("x", 1, keep) is None
    keep[classes.class_of[ids[[1, 3]]]] = False
    np.testing.assert_array_equal(classes.keep_along("x", 1, keep), [True, False, True, False])
    assert classes.keep_along("x", 2, keep) is None


def test_an_index_of_a_split_axis_stays_while_any_of_its_slots_does() -> None:
    ties = Ties()
    ids = ties.fresh(6)
    classes = ties.solve({"x": Label((1, 2, 3), (ids.reshape(1, 2, 3),))}, [])
    keep = np.ones(classes.num_classes, dtype=bool)
    keep[classes.class_of[ids[[0, 3]]]] = False
    np.testing.assert_array_equal(classes.keep_along("x", 2, keep), [False, True, True])
    assert classes.keep_along("x", 1, keep) is None


def test_what_stays_of_all_fields_at_once_is_what_stays_of_each() -> None:
    ties = Ties()
    ids, slots = ties.fresh(4), ties.fresh(6)
    field = spread(ids, 1, 3)
    labels = {
        "x": Label((2, 4, 8), (field,)),
        "shared": Label((2, 4, 8), (field,)),
        "split": Label((1, 2, 3), (slots.reshape(1, 2, 3),)),
        "bare": Label((5,)),
        "nothing": Label((1, 0), (spread(ties.fresh(0), 1, 2),)),
        "unranked": Label(None),
    }
    classes = ties.solve(labels, [Member("w", 0, ids)])
    for gone in ([], [1, 3], [0, 1, 2, 3], [4, 7], [5, 6, 7, 8, 9], [*range(10)]):
        keep = np.ones(classes.num_classes, dtype=bool)
        keep[classes.class_of[np.concatenate((ids, slots))[gone]]] = False
        kept = Kept(classes, keep)
        for name, label in labels.items():
            for axis in range(len(label.shape or ())):
                np.testing.assert_equal(kept.along(name, axis), classes.keep_along(name, axis, keep))
                np.testing.assert_equal(kept.axes(name).get(axis), classes.keep_along(name, axis, keep))
        assert kept.shape("x", (2, 4, 8)) == (2, int(keep[classes.class_of[ids]].sum()), 8)
        assert (id(field) in kept.empty()) == (not keep[classes.class_of[ids]].any())


def test_a_copy_of_a_field_is_not_taken_for_one_of_which_nothing_stays() -> None:
    ties = Ties()
    field = spread(ties.fresh(3), 1, 2)
    classes = ties.solve({"x": Label((2, 3), (field,))}, [])
    kept = Kept(classes, np.ones(classes.num_classes, dtype=bool))
    assert kept.count(field) == 3
    with pytest.raises(InternalError, match="a field of 3 ids that no label holds"):
        kept.count(field.copy())


def test_each_id_is_given_the_smallest_that_it_is_tied_to() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(500)
    cases = {
        "nothing": ([], []),
        "itself": ([3], [3]),
        "a chain": (np.arange(499), np.arange(1, 500)),
        "a shuffled chain": (order[:-1], order[1:]),
        "a star": (np.full(500, 499), np.arange(500)),
        "a pair many times": ([7] * 9, [5] * 9),
        **{f"{count} random pairs": tuple(rng.integers(0, 500, (2, count))) for count in (50, 250, 500, 2000)},
    }
    for name, (a, b) in cases.items():
        pairs = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
        root = smallest_tied(500, *pairs)
        _, component = connected_components(coo_matrix((np.ones(len(a)), pairs), shape=(500, 500)), directed=False)
        expected = [np.flatnonzero(component == own)[0] for own in component]
        np.testing.assert_array_equal(root, expected, err_msg=name)


@pytest.mark.parametrize("ids", [[], [3], [3, 3, 1], [[2, 0], [0, 2]]])
def test_distinct_numbers_come_sorted(ids: list[object]) -> None:
    np.testing.assert_array_equal(distinct(np.array(ids, dtype=np.int64)), np.unique(np.array(ids, dtype=np.int64)))


def test_spreading_puts_ids_on_one_axis() -> None:
    assert spread(np.arange(3), 2, 4).shape == (1, 1, 3, 1)
