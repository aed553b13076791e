"""Elimination: which channel goes next where the rest makes up for it, and what that costs.

Block Optimal Brain Surgeon (ZipLM, arXiv:2302.04089; Optimal Brain Compression, arXiv:2208.11580) over many reads at
once. For a read with weight W and H = E[u·uᵀ], removing the columns g costs tr(W_g · ([H⁻¹]_gg)⁻¹ · W_gᵀ), and
W −= W_g · ([H⁻¹]_gg)⁻¹ · [H⁻¹]_g makes up for it. A class costs the sum over all that read it. Owns that arithmetic;
what is worth its price is passes/fitting/combinations.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np

from prunec.ir.arrays import Array, Floats, Ids

_COMPACT_BELOW = 0.75
"""The part of a matrix's columns that is left when those that went are cut out of it."""


class Matrix:
    """One convolution group of one read: its weight, what is left of H⁻¹, and the blocks of columns by class.

    Args:
        weight: float64[rows, columns].
        scale: float64[rows]: the root of what an error in each row weighs.
        moment: float64[columns, columns]: H, damped; for a read whose weights are ``fixed`` not inverted: nothing
            makes up for what goes, so a class costs tr(W_g · H_gg · W_gᵀ).
        columns: int64[columns]: the class of each.
        rows: int64[rows]: the class of each output, 0 where none.
    """

    def __init__(
        self,
        weight: Floats,
        moment: Floats,
        columns: Ids,
        rows: Ids,
        *,
        scale: Floats | None = None,
        fixed: bool = False,
    ) -> None:
        self.fixed = fixed
        self.scale = np.ones(len(weight)) if scale is None else scale
        self.weight = weight * self.scale[:, None]
        self.inverse = moment if fixed else _inverse(moment)
        self.columns, self.rows = columns.copy(), rows
        self._width, self._at = columns.size, np.arange(columns.size)
        self.alive = np.ones(columns.size, dtype=bool)
        self._index()

    def _index(self) -> None:
        """Note where the columns of each class are: classes of equal width together, int64[classes, width]."""
        order = np.argsort(self.columns, kind="stable")
        order = order[self.alive[order] & (self.columns[order] != 0)]
        owners, starts, counts = np.unique(self.columns[order], return_index=True, return_counts=True)
        self.blocks: list[tuple[Ids, Ids]] = []
        for width in np.unique(counts).tolist():
            which = counts == width
            self.blocks.append((owners[which], order[starts[which][:, None] + np.arange(width)]))
        self.classes = np.concatenate([block[0] for block in self.blocks] or [np.zeros(0, np.int64)])

    def costs(self) -> Floats:
        """Return float64[classes]: what each class costs here, in the order of ``classes``."""
        return np.concatenate([self._costs(*block) for block in self.blocks] or [np.zeros(0)])

    def _costs(self, owners: Ids, at: Ids) -> Floats:
        parts = self.weight[:, at]  # [rows, classes, width]
        own = self.rows[:, None] == owners[None, :]
        if own.any():
            parts = np.where(own[:, :, None], 0.0, parts)
        squares = parts.transpose(1, 2, 0) @ parts.transpose(1, 0, 2)
        blocks: Array = self.inverse[at[:, :, None], at[:, None, :]]
        if not self.fixed:
            blocks = np.linalg.inv(blocks)
        found: Floats = np.maximum(0.0, np.einsum("cij,cij->c", squares, blocks))
        return found

    def part(self, classes: Ids) -> Matrix | None:
        """Return a small matrix of some classes only, exact for what is removed within it; None where it has none."""
        at = np.flatnonzero(self.alive & np.isin(self.columns, classes))
        if not at.size:
            return None
        small = Matrix.__new__(Matrix)
        small.fixed, small.rows, small.scale = self.fixed, self.rows, self.scale
        small.weight, small.inverse = self.weight[:, at].copy(), self.inverse[np.ix_(at, at)].copy()
        small.columns, small.alive = self.columns[at], np.ones(at.size, dtype=bool)
        small._width, small._at = self._width, self._at[at]
        small._index()
        return small

    def apart(self) -> Matrix:
        """Return a copy in which only columns go, whatever its rows belong to."""
        result = copy.copy(self)
        result.weight, result.inverse, result.alive = self.weight.copy(), self.inverse.copy(), self.alive.copy()
        result.rows = np.zeros_like(self.rows)
        result._index()
        return result

    def full(self) -> Floats:
        """Return float64[rows, columns], the weight as wide as it was: zeros where columns have gone."""
        result = np.zeros((self.weight.shape[0], self._width))
        result[:, self._at[self.alive]] = self.weight[:, self.alive] / self.scale[:, None]
        return result

    def weigh(self, factor: float) -> None:
        """Multiply what all errors here weigh."""
        self.scale = self.scale * np.sqrt(factor)
        self.weight *= np.sqrt(factor)

    def remove(self, classes: Sequence[int]) -> None:
        """Take classes out: their columns, with what makes up for them, and the rows that they make."""
        made = np.isin(self.rows, classes)
        if made.any():
            self.weight[made] = 0
        at = np.flatnonzero(self.alive & np.isin(self.columns, classes))
        if not at.size:
            return
        if not self.fixed:
            beside: Array = np.linalg.solve(self.inverse[np.ix_(at, at)], self.inverse[at])
            self.weight -= self.weight[:, at] @ beside
            self.inverse -= self.inverse[:, at] @ beside
        self.alive[at] = False
        if self.alive.mean() < _COMPACT_BELOW:
            left = np.flatnonzero(self.alive)
            self.weight = self.weight[:, left]
            self.inverse, self.columns = self.inverse[np.ix_(left, left)], self.columns[left]
            self._at = self._at[left]
            self.alive = np.ones(left.size, dtype=bool)
        self._index()


def _inverse(moment: Floats) -> Floats:
    inverse: Array = np.linalg.inv(moment)
    symmetric: Floats = (inverse + inverse.T) / 2
    return symmetric


def damped(moment: Floats, ridge: float) -> Floats:
    """Return H with a part of its mean diagonal added, so that it can be inverted."""
    mean = float(moment.diagonal().mean()) if moment.size else 0.0
    found: Floats = moment + np.eye(len(moment)) * (max(ridge * mean, 1e-30) if mean > 0 else 1.0)
    return found


class Elimination:
    """Classes that go one after the other, with the cost of each at its time.

    Args:
        matrices: of all reads; each class's cost is the sum over those that hold it.
        num_classes: of the graph.
    """

    def __init__(self, matrices: Sequence[Matrix], num_classes: int) -> None:
        self.matrices = list(matrices)
        self.cost: Floats = np.zeros(num_classes)
        self._own: list[Floats] = []
        self._of: dict[int, list[int]] = {}
        for number, matrix in enumerate(self.matrices):
            own = matrix.costs()
            self._own.append(own)
            self.cost[matrix.classes] += own
            for owner in np.unique(np.concatenate([matrix.classes, matrix.rows])).tolist():
                if owner:
                    self._of.setdefault(owner, []).append(number)

    def remove(self, classes: Sequence[int]) -> None:
        """Take classes out, and cost anew what they leave."""
        for number in sorted({number for owner in classes for number in self._of.get(owner, ())}):
            matrix = self.matrices[number]
            self.cost[matrix.classes] -= self._own[number]
            matrix.remove(classes)
            self._own[number] = matrix.costs()
            self.cost[matrix.classes] += self._own[number]
        self.cost[list(classes)] = 0

    def cheapest(self, candidates: Ids, count: int) -> Iterator[tuple[int, float]]:
        """Yield (class, its cost by then) for ``count`` of the candidates, the cheapest first; nothing is removed."""
        if count == 1 or candidates.size == 1:
            best = int(candidates[self.cost[candidates].argmin()])
            yield best, max(0.0, float(self.cost[best]))
            return
        touched = sorted({number for owner in candidates.tolist() for number in self._of.get(owner, ())})
        parts = [part for number in touched if (part := self.matrices[number].part(candidates)) is not None]
        small = Elimination(parts, self.cost.size)
        left = candidates
        for _ in range(min(count, candidates.size)):
            best = int(left[small.cost[left].argmin()])
            yield best, max(0.0, float(small.cost[best]))
            small.remove([best])
            left = left[left != best]
