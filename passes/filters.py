"""Filters: which rows of a contraction's weight are a multiple of another row, and of which.

Owns the comparison of weights; passes/profiles.py asks, and knows what biases and activations make of the answer. In
almost all weights no row is a multiple of another, and a few elements of each row show it: a number that no scale
changes is computed from them, and only rows that lie next to another one by it are looked at in full.
"""

from __future__ import annotations

import numpy as np

from prunec.ir.arrays import Array, Floats, Ids, Mask

PROBE = 8
"""Elements of a row that are looked at before all others."""

SLACK = 1.5
"""So many times the difference of single elements may that of their lines be: at most 1, and the rounding of sums."""

GLANCE = 1e-6
"""How far apart the lines of multiples may lie where they are computed in float32."""

SAME = {"float64": 2.0**-44}
"""Relative difference up to which two numbers count as the same number rounded, by dtype: what a few roundings make."""
SAME_SINGLE = 2.0**-21
"""The same for all other dtypes: four units in the last place of float32. Half precision gets no more: products
rounded to 11 bits prove nothing."""


def same_within(dtype: str) -> float:
    """Return the relative difference up to which two numbers of a dtype count as the same number, rounded."""
    return SAME.get(dtype, SAME_SINGLE)


def may_have_families(taps: Array) -> bool:
    """Tell whether some rows may be multiples of others: in almost all weights none is, and a glance tells."""
    if taps.shape[0] * taps.shape[1] < 2 or taps.shape[1] == 1 or not taps.size or is_placeholder(taps):
        return False
    return _candidates(taps, np.repeat(np.arange(taps.shape[0]), taps.shape[1]), 0.0).size > 1


def is_placeholder(taps: Array) -> bool:
    """Tell whether a weight is one number everywhere, as in files without their weights: that tells nothing of filters.

    Those of one element per row are none: depthwise kernels of 1x1, gains.
    """
    if taps.shape[2] * taps.shape[3] < 2:
        return False
    return not any(taps.strides) or bool((taps[0, 0] == taps.flat[0]).all() and (taps == taps.flat[0]).all())


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
    outs, length = taps.shape[1], taps.shape[2] * taps.shape[3]
    if group_of.size < 2 or not length:
        return first, factors
    rows = _candidates(taps, group_of, within)
    if rows.size < 2:
        return first, factors
    full = taps[rows // outs, rows % outs].reshape(rows.size, length).astype(np.float64)
    line = _line(full, 1)
    order = np.lexsort((line, group_of[rows]))
    with np.errstate(invalid="ignore"):
        close = (np.diff(line[order]) <= SLACK * within) & (np.diff(group_of[rows][order]) == 0)
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


def _line(rows: Array, seed: int) -> Array:
    """Return number[rows] in [0, 1/2]: |a fixed sum of the elements| over that of their magnitudes.

    The same for all multiples of a row, negative ones included. NaN where the row is zero.
    """
    weights = (np.modf(np.arange(1, rows.shape[1] + 1) * np.sqrt(seed + 1.25))[0] - 0.5).astype(rows.dtype)
    with np.errstate(all="ignore"):
        return np.asarray(np.abs(rows @ weights) / (np.abs(rows) @ np.ones_like(weights)))


def _candidates(taps: Array, group_of: Ids, within: float) -> Ids:
    """Return the rows that may be multiples of another one of their group, by their first few elements.

    So may all of which these are zero. Elements that lie together are looked at, since each other one would have to be
    fetched from memory by itself.
    """
    few = -(-PROBE // min(taps.shape[3], PROBE))
    probes = taps[:, :, :few, :PROBE].reshape(group_of.size, -1)
    if probes.dtype.kind != "f" or probes.itemsize < 4:
        probes = probes.astype(np.float32)
    rows = np.arange(group_of.size)
    for seed in (2, 3):
        line = _line(probes, seed)
        line = line + group_of if taps.shape[0] > 1 else line
        ordered = np.sort(line)
        close = ~(ordered[1:] - ordered[:-1] > SLACK * within + GLANCE)
        if not close.any():
            return rows[:0]
        near = np.isin(line, np.append(ordered[:-1][close], ordered[1:][close])) | np.isnan(line)
        rows, probes, group_of = rows[near], probes[near], group_of[near]
    return rows[group_of >= 0]
