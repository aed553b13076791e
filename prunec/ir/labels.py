"""Channel ids: the labels that values carry, the builder that ties them, and the solved classes.

Owns ``Label`` (what a rule reads and returns), ``Ties`` (mutable, lives inside one pass),
``ChannelClasses`` (the frozen result) and ``Kept`` (what a keep mask leaves of it). The rules that use
them are in passes/rules/channels/table.py.

An id is a positive integer; 0 means "no channel": a position that can never be removed. A *field* is
an integer array that broadcasts against its value's shape: full size on the axes along which the ids
vary, size 1 elsewhere. A label is a tuple of fields, almost always one: shape (1, C, 1, 1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.errors import InternalError
from prunec.ir.arrays import Ids
from prunec.ir.contractions import in_axis
from prunec.ir.graph import Node, Shape


def varying(field: Ids) -> tuple[int, ...]:
    """Return the axes along which ``field`` has an id per index."""
    return tuple(axis for axis, size in enumerate(field.shape) if size != 1)


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """The channel ids of one value.

    ``shape`` is the value's; None where even the rank is unknown (then there are no fields).
    """

    shape: Shape | None
    fields: tuple[Ids, ...] = ()

    @classmethod
    def along(cls, shape: Shape, axis: int, ids: Ids) -> Label:
        """Label one axis: ``ids`` is int64[shape[axis]]. An axis of size 1 stays unlabelled."""
        return cls(shape, (spread(ids, axis, len(shape)),) if ids.size > 1 else ())

    @property
    def rank(self) -> int:
        assert self.shape is not None, "a label without a rank has no axes"
        return len(self.shape)

    def on(self, axis: int) -> tuple[Ids, ...]:
        """Return the fields that vary along ``axis``."""
        return tuple(field for field in self.fields if field.shape[axis] != 1)

    def without(self, fields: Iterable[Ids]) -> Label:
        """Return the label less the given fields (by identity)."""
        gone = {id(field) for field in fields}
        return Label(self.shape, tuple(field for field in self.fields if id(field) not in gone))


def spread(ids: Ids, axis: int, rank: int) -> Ids:
    """Reshape int64[C] to a field of ``rank`` axes that varies along ``axis``."""
    shape = [1] * rank
    shape[axis] = ids.size
    return ids.reshape(shape)


def distinct(ids: Ids) -> Ids:
    """Return the different numbers among ``ids``, sorted: np.unique at a fraction of its time."""
    ids = np.sort(ids, axis=None)
    return ids[np.append(True, ids[1:] != ids[:-1])] if ids.size else ids


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """Ids that must stay, and why. ``node`` is None for graph inputs, outputs and the user's keep list."""

    ids: Ids
    node: Node | None
    where: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """A grouped convolution's demand: every convolution group keeps as many channels as the others.

    ``in_ids`` is int64[g, C_in/g], ``out_ids`` int64[g, C_out/g]. A whole group may go when all of its
    inputs and outputs go.
    """

    node: Node
    in_ids: Ids
    out_ids: Ids

    @property
    def slots(self) -> Ids:
        """The side, int64[g, C/g], whose channels lie on axis 1 of the weight: all groups share its slots."""
        return self.in_ids if in_axis(self.node) == 1 else self.out_ids


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One axis of one parameter that carries channels: ``ids`` int64[size of the axis], 0 where none."""

    param: str
    axis: int
    ids: Ids


NO_CHANNELS = "meets an axis that has no channels of its own"


class Ties:
    """Collects ids, unifications, pins and constraints while the rules run; ``solve`` ends its life."""

    def __init__(self) -> None:
        self._count = 1
        self._pairs: list[tuple[Ids, Ids]] = []
        self._pins: list[Pin] = []
        self._balances: list[Balance] = []
        self._rectangles: list[tuple[Node, Ids]] = []
        self._channels: list[Ids] = []
        self.node: Node | None = None
        """The node whose rule runs now: pins are recorded against it."""

    def fresh(self, count: int) -> Ids:
        """Return ``count`` new ids, int64[count]."""
        ids = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        return ids

    def unify(self, a: Ids, b: Ids, reason: str = NO_CHANNELS) -> None:
        """Tie ``a`` to ``b`` element by element (numpy broadcasting).

        An id that meets 0 is pinned: the other operand cannot give up that position.
        """
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        a, b = a.ravel(), b.ravel()
        if np.count_nonzero(a) == a.size and np.count_nonzero(b) == b.size:
            self._pairs.append((a, b))
            return
        both = (a != 0) & (b != 0)
        self._pairs.append((a[both], b[both]))
        lone = np.concatenate((a[~both], b[~both]))
        self.pin(lone, reason)

    def tie_along(self, field: Ids, keep_axes: Sequence[int], reason: str = NO_CHANNELS) -> Ids:
        """Tie the ids of ``field`` that differ only outside ``keep_axes``; return one representative each.

        The result has size 1 on every axis that is not in ``keep_axes``.
        """
        if field.size == math.prod(field.shape[axis] for axis in keep_axes):
            return field
        others = [axis for axis in varying(field) if axis not in keep_axes]
        head = field
        for axis in others:
            head = head.take([0], axis=axis)
        self.unify(field, head, reason)
        return head

    def pin(self, ids: Ids | Sequence[Ids], reason: str, where: str = "") -> None:
        """Forbid the removal of ``ids``, with the reason shown to the user."""
        if isinstance(ids, np.ndarray | np.generic):  # one entry of a vector is a scalar
            flat = np.ravel(ids)
        elif ids:
            flat = np.concatenate([np.ravel(i) for i in ids])
        else:
            return
        flat = flat[flat != 0]
        if not (flat[1:] > flat[:-1]).all():  # most come in the order in which they were made
            flat = distinct(flat)
        if flat.size:
            node = self.node
            self._pins.append(Pin(flat, node, where or (node.origin if node is not None else ""), reason))

    @property
    def balances(self) -> tuple[Balance, ...]:
        """What was asked for with ``balance`` so far."""
        return tuple(self._balances)

    def balance(self, in_ids: Ids, out_ids: Ids) -> None:
        """Ask for equal counts per group at the current node; see ``Balance``."""
        assert self.node is not None
        self._balances.append(Balance(self.node, in_ids, out_ids))

    def rectangle(self, field: Ids) -> None:
        """Ask that what survives of ``field`` be rectangular: its ids vary along several axes of a tensor."""
        assert self.node is not None
        self._rectangles.append((self.node, field))

    def channel(self, ids: Ids) -> None:
        """Mark ids as channels: outputs of a contraction. Other axes (kernel taps, tokens) do not count."""
        self._channels.append(ids.ravel())

    def solve(self, labels: Mapping[str, Label], members: Sequence[Member]) -> ChannelClasses:
        """Partition the ids into classes. Rectangles that do not come out rectangular are tied and solved again.

        It ends: the number of rectangles that were never tied falls with each round. Once tied a rectangle stays
        rectangular: each of its slots is one class, or holds positions without a channel and is pinned, and later
        rounds only join and pin classes.
        """
        class_of, pinned = self._partition()
        untied = self._rectangles
        while ragged := [pair for pair in untied if not _is_rectangular(pair[1], class_of, pinned)]:
            for self.node, field in ragged:
                self.tie_along(field, [_slots(field)], "shares a slot with positions that are no channels")
            tied = {id(field) for _, field in ragged}
            left = [pair for pair in untied if id(pair[1]) not in tied]
            assert len(left) < len(untied), "each round ties a rectangle for the first time"
            untied = left
            class_of, pinned = self._partition()
            assert all(_is_rectangular(field, class_of, pinned) for _, field in ragged), "what is tied is a rectangle"
        num_classes = pinned.size
        is_channel = np.zeros(num_classes, dtype=bool)
        for ids in self._channels:
            is_channel[class_of[ids]] = True
        is_channel[0] = False
        return ChannelClasses(
            class_of=class_of,
            pinned=pinned,
            is_channel=is_channel,
            labels=MappingProxyType(dict(labels)),
            members=tuple(members),
            pins=tuple(self._pins),
            balances=tuple(self._balances),
        )

    def _components(self) -> Ids:
        a = np.concatenate([pair[0] for pair in self._pairs] or [_NO_IDS])
        b = np.concatenate([pair[1] for pair in self._pairs] or [_NO_IDS])
        self._pairs = [(a, b)]
        root = smallest_tied(self._count, a, b)
        # Class numbers follow the order in which ids were made, so they are the same on every run;
        # id 0 is alone in its component (unify never pairs it) and becomes class 0.
        number = np.cumsum(root == np.arange(self._count)) - 1
        class_of: Ids = number[root]
        return class_of

    def _partition(self) -> tuple[Ids, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Return the class of each id, and per class whether it is pinned, by what was tied and pinned so far."""
        class_of = self._components()
        pinned = np.zeros(int(class_of.max()) + 1, dtype=bool)
        pinned[0] = True
        for pin in self._pins:
            pinned[class_of[pin.ids]] = True
        return class_of, pinned


_NO_IDS: Ids = np.zeros(0, dtype=np.int64)


def smallest_tied(count: int, a: Ids, b: Ids) -> Ids:
    """Return int64[count]: for each id the smallest one that pairs (a[i], b[i]) tie it to, over any number of pairs.

    Connected components by hooking and pointer jumping (Shiloach and Vishkin, 1982): a few rounds of numpy, as
    fast as scipy's, and importing that takes longer than most analyses.
    """
    root = np.arange(count)
    while True:
        apart = root[a] != root[b]
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(root[a], root[b]), np.minimum(root[a], root[b]))
        while not np.array_equal(above := root[root], root):
            root = above


def _is_rectangular(field: Ids, class_of: Ids, pinned: np.ndarray[Any, np.dtype[np.bool_]]) -> bool:
    """Tell whether what stays of a field is rectangular, whatever goes: classes differ along one axis at most.

    What is pinned stays like a position without a channel, so all of these count as one class. Of nothing (a slice
    that takes no channel), nothing goes.
    """
    if not field.size:
        return True
    classes = class_of[field]
    classes = np.where(pinned[classes], 0, classes)
    return sum(bool((classes != classes.take([0], axis=axis)).any()) for axis in varying(field)) <= 1


def _slots(field: Ids) -> int:
    """Return the axis whose indices go as a whole where a rectangle is tied: the longest, of equal ones the last."""
    return max(varying(field), key=lambda axis: (field.shape[axis], axis))


@dataclass(frozen=True, slots=True, eq=False)
class _Laid:
    """The fields of all labels, each once, end to end: one numpy call tells what a keep mask leaves of every one.

    ``owners`` int64[all ids] is the class of each id, ``starts`` int64[fields] where each field begins; ``place`` has
    the number of a field by its identity. Values share fields, fields of the same classes a number, and what has no
    elements is left out.
    """

    owners: Ids
    starts: Ids
    place: Mapping[int, int]

    def touched(self, classes: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return bool[fields]: those that have an id of one of the classes (bool[number of classes])."""
        if not self.starts.size:
            return np.zeros(0, dtype=bool)
        return np.logical_or.reduceat(classes[self.owners], self.starts)

    @classmethod
    def out(cls, labels: Mapping[str, Label], class_of: Ids) -> _Laid:
        fields = {id(field): field for label in labels.values() for field in label.fields if field.size}
        numbers: dict[bytes, int] = {}
        place, laid = dict[int, int](), list[Ids]()
        for key, field in fields.items():
            owners = class_of[field.ravel()]
            place[key] = numbers.setdefault(owners.tobytes(), len(numbers))
            if place[key] == len(laid):
                laid.append(owners)
        sizes = np.array([0, *(owners.size for owners in laid)], dtype=np.int64)
        return cls(np.concatenate([*laid, _NO_IDS]), np.cumsum(sizes)[:-1], place)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelClasses:
    """The channels of a graph, partitioned into classes that live or die together.

    Args:
        class_of: int64[number of ids]; class 0 holds only id 0, "no channel".
        pinned: bool[number of classes]; True where some pin forbids removal.
        is_channel: bool[number of classes]; False for axes that are not channels (kernel taps, tokens).
        labels: the label of every value and parameter.
        members: the parameter axes that carry ids, in graph order.
        pins: every pin, in graph order.
        balances: the grouped convolutions' demands.
        laid: the fields of the labels end to end; see ``Kept``.
        groups: see passes/groups.py, which finds them once.
    """

    class_of: Ids
    pinned: np.ndarray[Any, np.dtype[np.bool_]]
    is_channel: np.ndarray[Any, np.dtype[np.bool_]]
    labels: Mapping[str, Label]
    members: tuple[Member, ...]
    pins: tuple[Pin, ...]
    balances: tuple[Balance, ...]
    laid: _Laid = dataclasses.field(init=False, repr=False)
    groups: tuple[tuple[int, ...], ...] | None = dataclasses.field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "laid", _Laid.out(self.labels, self.class_of))

    @property
    def num_classes(self) -> int:
        """The number of classes, class 0 ("no channel") included."""
        return int(self.pinned.size)

    def keep_along(
        self, name: str, axis: int, keep: np.ndarray[Any, np.dtype[np.bool_]]
    ) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Return bool[size of the axis] for a value under ``keep`` (bool[num_classes]); None where nothing goes.

        A field that varies along several axes counts an index as kept when any id of that slice is kept
        (the solved classes make what survives rectangular).
        """
        mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None
        label = self.labels[name]
        for field in label.on(axis):
            kept = keep[self.class_of[field]]
            others = tuple(other for other in range(field.ndim) if other != axis)
            along = np.asarray(kept.any(axis=others))
            mask = along if mask is None else np.logical_and(mask, along)
        return None if mask is None or bool(mask.all()) else mask


class Kept:
    """What a keep mask leaves of every field of the labels; the mask must not change while this is asked.

    Args:
        keep: bool[num_classes].

    Attributes:
        counts: how many ids stay of each field, by its place in ``ChannelClasses.laid``.
    """

    def __init__(self, classes: ChannelClasses, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self.classes = classes
        self.keep = keep
        laid = classes.laid
        counts = np.add.reduceat(keep[laid.owners], laid.starts, dtype=np.int64) if laid.starts.size else _NO_IDS
        self.counts: list[int] = counts.tolist()
        self._empty = bool((counts == 0).any())

    def count(self, ids: Ids) -> int:
        """Return how many ids of a field of some label stay.

        Raises:
            InternalError: the array is no label's own; a copy of one is another field.
        """
        place = self.classes.laid.place.get(id(ids))
        if place is None and ids.size:
            raise InternalError("labels", f"a field of {ids.size} ids that no label holds was asked for")
        return 0 if place is None else self.counts[place]

    def empty(self) -> set[int]:
        """Return the identities of the fields of which nothing stays."""
        if not self._empty:
            return set()
        return {key for key, place in self.classes.laid.place.items() if not self.counts[place]}

    def along(self, name: str, axis: int) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Return what ``ChannelClasses.keep_along`` does."""
        if all(self.count(ids) == ids.size for ids in self.classes.labels[name].on(axis)):
            return None
        return self.classes.keep_along(name, axis, self.keep)

    def axes(self, name: str) -> dict[int, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Return the masks of the axes of a value along which something goes, in order."""
        cut = [ids for ids in self.classes.labels[name].fields if self.count(ids) < ids.size]
        masks = {axis: self.along(name, axis) for axis in sorted({axis for ids in cut for axis in varying(ids)})}
        return {axis: mask for axis, mask in masks.items() if mask is not None}

    def shape(self, name: str, shape: Shape) -> Shape:
        """Return the sizes that are left of a value of ``shape``."""
        fields = self.classes.labels[name].fields
        sizes = list(shape)
        for ids, left in ((ids, self.count(ids)) for ids in fields):
            if left == ids.size:
                continue
            for axis in varying(ids):
                if ids.shape[axis] == ids.size and sum(other.shape[axis] != 1 for other in fields) == 1:
                    sizes[axis] = left  # the field runs along this axis only, and no other does: what counts is known
                elif (mask := self.along(name, axis)) is not None:
                    sizes[axis] = int(mask.sum())
        return tuple(sizes)
