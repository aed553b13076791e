"""What every constant rule gets: one node, and what is known of its inputs, as float64 arrays with NaN where unknown.

Does not know any op: those are in the other files of this room, and ``table.py`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Node, Shape
from prunec.passes.rules.arrays import along, lift, unknown
from prunec.passes.rules.weights import Weight

Known = Sequence[Array | None]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One node, and what is known where its rule runs.

    Args:
        node: the node.
        known: per input, its abstract array; None where nothing is known or the input is absent.
        in_shapes: per input; None where absent or of unknown rank.
        out_shapes: per output; the first is never None.
        out_dtype: numpy's name of the first output's type.
        weight: the contraction's weight, where it is known at least in part.
    """

    node: Node
    known: tuple[Array | None, ...]
    in_shapes: tuple[Shape | None, ...]
    out_shapes: tuple[Shape | None, ...]
    out_dtype: str
    weight: Weight | None = None

    @property
    def rank(self) -> int:
        """The number of axes of the first output."""
        shape = self.out_shapes[0]
        assert shape is not None, "a rule runs only where the output's rank is known"
        return len(shape)

    def has(self, index: int) -> bool:
        """Tell whether the optional input ``index`` is there."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def array(self, index: int) -> Array:
        """Return what is known of an input, all NaN where that is nothing."""
        found = self.known[index]
        if found is not None:
            return found
        shape = self.in_shapes[index]
        return unknown(0 if shape is None else len(shape))

    def vector(self, index: int, axis: int, default: float) -> Array:
        """Return an input that lies along ``axis`` (gamma, a bias, a scale), or ``default`` if it is absent."""
        if not self.has(index):
            return np.full((1,) * self.rank, default)
        array = np.asarray(self.array(index), dtype=np.float64)
        return along(array, axis, self.rank) if array.ndim <= 1 else lift(array, self.rank)


Rule = Callable[[Call], Known]


def nothing(_: Call) -> Known:
    """Unknown, whatever the inputs are."""
    return [None]
