"""What every profile rule gets and returns: per channel, which map it is a multiple of, and by which factor.

Does not know any op: those are in the other files of this room, and ``table.py`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunec.ir.arrays import Array, Floats, Ids
from prunec.ir.graph import Node, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What is known of one value: each element is ``coefficients`` times the map that ``keys`` names.

    A key says all of a map, in the order of its elements: values of different ops may come to lie side by side, so an
    op that cuts, repeats or reorders maps makes other ones of them.

    Both have the value's rank, and the same shape: full size on the axes along which maps are told apart, 1 on those
    along which a map extends. NaN is an element of which nothing is known (its key is 0). Key 0 is the map that is
    1 everywhere (a constant, which may be of size 1 along any axis); negative keys are other maps that do not depend on
    the input (a padded constant), positive ones depend on it.
    """

    coefficients: Floats
    keys: Ids

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which maps are told apart."""
        return tuple(axis for axis, size in enumerate(self.keys.shape) if size != 1)


class Keys:
    """The numbers of the maps of one graph; lives inside one pass."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}

    def of(self, made: tuple[str, int], maps: Sequence[Ids], marks: Sequence[Ids] = ()) -> Ids:
        """Return the keys of what a node makes of maps, element by element; equal ones where all are equal.

        Args:
            made: the node, and the number of its output.
            maps: keys; where none of them depends on the input, the result does not.
            marks: whatever else tells elements apart, as numbers.
        """
        columns = np.stack([array.ravel() for array in np.broadcast_arrays(*maps, *marks)])
        found, inverse = np.unique(columns, axis=1, return_inverse=True)
        numbers = [self._number((*made, *column), column[: len(maps)]) for column in found.T.tolist()]
        shape = np.broadcast_shapes(*(array.shape for array in (*maps, *marks)))
        return np.asarray(numbers, dtype=np.int64)[inverse.ravel()].reshape(shape)

    def _number(self, what: tuple[Any, ...], maps: Sequence[int]) -> int:
        number = self._numbers.setdefault(what, len(self._numbers) + 1)
        return number if any(key > 0 for key in maps) else -number


@dataclass(frozen=True, slots=True, eq=False)
class At:
    """One node where its rule runs.

    Args:
        node: the node.
        parts: per input what is known of it; None where that is nothing, or the input is absent.
        in_shapes: per input, () where absent.
        out_shapes: per output, all of known rank.
        keys: gives new maps their numbers.
        within: the relative difference up to which factors count as the same.
        is_float: the first output holds floating-point numbers.
        still: what is constant of the first output; None where that is nothing.
    """

    node: Node
    parts: tuple[Profile | None, ...]
    in_shapes: tuple[Shape, ...]
    out_shapes: tuple[Shape, ...]
    keys: Keys
    within: float
    is_float: bool
    still: Array | None

    @property
    def rank(self) -> int:
        return len(self.out_shapes[0])

    def new(self, maps: Sequence[Ids], marks: Sequence[Ids], coefficients: Floats, output: int = 0) -> Profile | None:
        """Return other maps of which elements are multiples, where all is known and some map is no constant."""
        shape = np.broadcast_shapes(coefficients.shape, *(each.shape for each in (*maps, *marks)))
        known = np.broadcast_to(np.isfinite(coefficients) & (coefficients != 0), shape)
        known = known & np.logical_or.reduce([np.broadcast_to(each != 0, shape) for each in maps])
        if not known.any():
            return None
        keys = self.keys.of((self.node.name, output), maps, marks)
        return Profile(np.where(known, coefficients, np.nan), np.where(known, keys, 0))


Rule = Callable[[At], Sequence[Profile | None]]


def alike(groups: Sequence[Ids], values: Floats, within: float, sizes: Floats | None = None) -> Ids:
    """Return int64 labels: equal where the groups are and the values differ by rounding at most.

    Args:
        groups, values: broadcast against one another.
        within: times ``sizes`` (|values| where not given) is what rounding makes.
    """
    arrays = np.broadcast_arrays(values, np.abs(values) if sizes is None else sizes, *groups)
    shape = arrays[0].shape
    value, size, *rest = (array.ravel() for array in arrays)
    labels = np.zeros(value.size, dtype=np.int64)
    start: tuple[Any, ...] = ()
    label, begun = 0, 0.0
    for at in np.lexsort((value, *rest)).tolist():
        group = tuple(int(each[at]) for each in rest)
        if group != start or not abs(value[at] - begun) <= within * size[at]:
            label, start, begun = label + 1, group, float(value[at])
        labels[at] = label
    return labels.reshape(shape)
