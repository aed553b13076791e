"""Least squares from sums over the data: the normal equations of one fit, with a ridge towards the present weights.

Owns the arithmetic only; refit.py adds up the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunec.fitting.grams import Gram
from prunec.ir.arrays import Array, Floats, Ids

_EXACT, _LOOSE, _ENOUGH = 1e-9, 1.0, 2.0
"""The ridge of combinations that are only a starting point, with enough columns of data (two for each unknown) and with
fewer: those are met exactly by combinations that say nothing of other data, most wildly by about one column each."""


_ALIKE = 1e-9
"""How far the squared correlation of a column with its multiple is below one, at most."""


def combinations(gram: Gram, group: int, seen: Ids, gone: Ids) -> Floats:
    """Return float64[seen, gone]: how inputs that have gone are best made up of those that are seen.

    With few columns of data only multiples of one input are taken to be meant.

    Args:
        group: the convolution group.
        seen, gone: indices of the Gram.
    """
    total = gram.total[group]
    among, across = total[np.ix_(seen, seen)], total[np.ix_(seen, gone)]
    if gram.count >= _ENOUGH * len(total):
        return _ridged(among, across, _EXACT)
    found = _ridged(among, across, _LOOSE)
    sizes = among.diagonal()[:, None] * total.diagonal()[gone][None, :]
    alike = np.divide(across**2, sizes, out=np.zeros_like(across), where=sizes > 0)
    first, at = alike.argmax(axis=0), np.flatnonzero(alike.max(axis=0) > 1 - _ALIKE)
    found[:, at] = 0
    found[first[at], at] = across[first[at], at] / among.diagonal()[first[at]]
    return found


class Equations:
    """The normal equations of a fit, per convolution group.

    Args:
        gram: of the inputs; empty at first.
        rows: how many outputs are fitted, in each group.
    """

    def __init__(self, gram: Gram, rows: int) -> None:
        self._gram = gram
        self._right = np.zeros((*gram.total.shape[:2], rows))
        self._factors: list[Any] | None = None

    def add(self, seen: Array, target: Array) -> None:
        """Take in columns: number[groups, width, n] of inputs, number[groups, rows, n] of targets."""
        self._gram.add(seen)
        self.aim(seen, target)

    def aim(self, seen: Array, target: Array) -> None:
        """Take in targets of columns that were added before."""
        width = seen.shape[1]
        for total, u, t in zip(self._right, seen, target, strict=True):
            total[:width] += u @ t.T
            if self._gram.ones:
                total[width] += t.sum(axis=1, dtype=np.float64)

    def forget_targets(self) -> None:
        """Forget the targets, and keep the inputs."""
        self._right[:] = 0

    def solved(self, old: Floats, ridge: float) -> Floats:
        """Return float64[groups, columns, rows] with the least squared error plus the ridge towards ``old``.

        Args:
            ridge: of the mean of the Gram's diagonal, more where there are few columns of data; the same each time.

        Ensures: NaN where the data hold any, or infinity.
        """
        from scipy.linalg import lu_factor, lu_solve  # importing scipy takes longer than most analyses

        if not (np.isfinite(self._gram.total).all() and np.isfinite(self._right).all()):
            return np.full_like(old, np.nan)
        if self._factors is None:
            ridge *= max(1.0, _ENOUGH * self._gram.total.shape[1] / max(1, self._gram.count)) ** 2
            self._factors = [lu_factor(gram + np.diag(self._damping(gram, ridge))) for gram in self._gram.total]
        parts = zip(self._factors, self._gram.total, self._right, old, strict=True)
        return np.stack([o + lu_solve(factors, right - gram @ o) for factors, gram, right, o in parts])

    def _damping(self, gram: Floats, ridge: float) -> Floats:
        width = len(gram) - self._gram.ones
        diagonal = np.zeros(len(gram))
        diagonal[:width] = max(ridge * float(gram.diagonal()[:width].mean()), 1e-30)
        if self._gram.ones:
            diagonal[width] = 1e-9 * max(1.0, gram[width, width])
        return diagonal


def products(found: Floats, seen: Array) -> Array:
    """Return number[groups, rows, n]: the outputs of a fit for these columns."""
    width = seen.shape[1]
    weight = found.astype(seen.dtype).swapaxes(1, 2)
    made: Array = weight[:, :, :width] @ seen
    return made if weight.shape[2] == width else made + weight[:, :, width:]


def _ridged(gram: Floats, right: Floats, how_much: float) -> Floats:
    """Solve a Gram's equations with a ridge, given as a fraction of the mean of its diagonal."""
    ridge = max(how_much * float(gram.diagonal().mean()), 1e-30)
    found: Array = np.linalg.solve(gram + ridge * np.eye(len(gram)), right)
    return found.astype(np.float64, copy=False)
