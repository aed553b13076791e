"""Filters: which rows of a contraction's weight are a multiple of another row, and of which.

Owns the comparison of weights; passes/profiles.py asks, and knows what biases and activations make of the answer. In
almost all weights no row is a multiple of another, and a few elements of each row show it: a number that no scale
changes is computed from them, and only rows that lie next to another one by it are looked at in full.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunec.ir.arrays import Array, Floats, Ids, Mask

PROBE = 16
"""Elements of a row that are looked at before all others."""

SLACK = 4
"""So many times the difference of single elements may that of their sums be."""

SAME = {"float64": 2.0**-44}
"""Relative difference up to which two numbers count as the same number rounded, by dtype: what a few roundings make."""
SAME_SINGLE = 2.0**-21
"""The same for all other dtypes: four units in the last place of float32. Half precision gets no more: products
rounded to 11 bits prove nothing."""


def same_within(dtype: str) -> float:
    """Return the relative difference up to which two numbers of a dtype count as the same number, rounded."""
    return SAME.get(dtype, SAME_SINGLE)


def families(taps: Array, group_of: Ids, within: float) -> tuple[Ids, Floats]:
    """Find the rows that are multiples of one another.

    Args:
        taps: number[g, out/g, in/g, taps]; row r is output r of all g·out/g.
        group_of: int64[rows]; only rows of the same group are compared, negative ones with none.
        within: the relative difference of each element up to which it counts as the same.

    Returns:
        (int64[rows], float64[rows]): the first row that each is a multiple of, or -1 where it is alone or zero; and
        the factor: row = factor · taps[first row], element by element. The factor may be negative.
    Cost: linear in rows; linear in elements where rows are multiples.
    """
    first, factors = np.full(group_of.size, -1, dtype=np.int64), np.full(group_of.size, np.nan)
    groups, outs, ins, per_input = taps.shape
    length = ins * per_input
    sizes = np.bincount(group_of[group_of >= 0], minlength=1)
    rows = np.flatnonzero((group_of >= 0) & (sizes[group_of] > 1))
    if rows.size < 2 or not length:
        return first, factors
    at = np.unique(np.linspace(0, length - 1, min(length, PROBE)).astype(np.int64))
    probes = taps[:, :, at // per_input, at % per_input].reshape(groups * outs, at.size).astype(np.float64)
    for seed in (1, 2):
        rows = rows[_has_neighbour(probes[rows], group_of[rows], seed, within)]
    if rows.size < 2:
        return first, factors
    full = taps[rows // outs, rows % outs].reshape(rows.size, length).astype(np.float64)
    order, close = _neighbours(full, group_of[rows], 3, within)
    for run in np.split(order, np.flatnonzero(~close) + 1):
        _split(np.sort(run), rows, full, within, first, factors)
    return first, factors


def _split(run: Ids, rows: Ids, full: Floats, within: float, first: Ids, factors: Floats) -> None:
    """Write down which rows of a run are multiples of one another (in place)."""
    while run.size > 1:
        base = full[run[0]]
        scale = full[run] @ base / (base @ base)
        same = _same(full[run], scale[:, None] * base, within)
        same[0] = True
        if np.count_nonzero(same) > 1:
            first[rows[run[same]]] = rows[run[0]]
            factors[rows[run[same]]] = scale[same]
        run = run[~same]


def _same(found: Floats, expected: Floats, within: float) -> Mask:
    same = np.abs(found - expected) <= within * np.abs(found)
    return np.asarray(same.all(axis=1))


def _line(rows: Floats, seed: int) -> Floats:
    """Return float64[rows] in [0, 1/2]: |a fixed sum of the elements| over that of their magnitudes.

    The same for all multiples of a row, negative ones included. NaN where the row is zero.
    """
    weights: np.ndarray[Any, np.dtype[np.float64]] = np.modf(np.arange(1, rows.shape[1] + 1) * np.sqrt(seed + 1.25))[0]
    with np.errstate(all="ignore"):
        line: Floats = np.abs(rows @ (weights - 0.5)) / np.abs(rows).sum(axis=1)
    return line


def _neighbours(rows: Floats, group_of: Ids, seed: int, within: float) -> tuple[Ids, Mask]:
    """Return the order of rows by group and line, and bool[rows - 1]: each of them may be a multiple of the next."""
    line = _line(rows, seed)
    order = np.lexsort((line, group_of))
    with np.errstate(invalid="ignore"):
        close: Mask = (np.diff(line[order]) <= SLACK * within) & (np.diff(group_of[order]) == 0)
    return order, close


def _has_neighbour(rows: Floats, group_of: Ids, seed: int, within: float) -> Mask:
    """Return bool[rows]: another row of its group may be a multiple; so may it be where all that is seen is zero."""
    order, close = _neighbours(rows, group_of, seed, within)
    near = np.asarray(~rows.any(axis=1))
    near[order[:-1][close]] = True
    near[order[1:][close]] = True
    return near
