"""What a contraction's weight says about who reads whom: shared by constants, liveness and absorption.

Owns the view of a convolution's or matrix product's weight as [group, output, input, tap]. Does not
know where weights come from; passes/constants.py makes one ``Weight`` per contraction and keeps it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Array, Ids, Mask
from prunec.ir.contractions import conv_groups, is_spatial, out_axis
from prunec.ir.graph import Node

PROBE = 32
"""Columns looked at before all others: in most weights they settle every row."""

NEGLIGIBLE = 1e-6
"""A weight, or a gamma, below this fraction of its tensor's median magnitude counts as zero. Weight decay
leaves such remnants (1e-39 in published files), and float32 results do not show them."""

SAMPLES = 4096
"""Elements that the median is taken from, spread evenly; a full pass would cost more than all else here."""


def negligible(array: Array) -> float:
    """Return the magnitude up to which elements of ``array`` count as zero."""
    if array.dtype.kind in "iub" or not array.size:
        return 0.0
    # The flat iterator picks single elements; ravel would copy all of a transposed weight.
    elements = array.reshape(-1) if array.flags.c_contiguous else array.flat
    sample = np.abs(elements[:: max(1, array.size // SAMPLES)])
    if sample.dtype.itemsize < 4:
        sample = sample.astype(np.float32)
    return NEGLIGIBLE * _median(sample[np.isfinite(sample) & (sample > 0)])


def _median(sample: Array) -> float:
    """Return the median, 0 of nothing; ``sample`` is reordered. np.median takes several times as long around it."""
    if not sample.size:
        return 0.0
    middle = sample.size // 2
    sample.partition(middle)
    upper = float(sample[middle])
    return upper if sample.size % 2 else (float(sample[:middle].max()) + upper) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A weight as number[g, out/g, in/g, taps]: a view of the model's own memory, nothing is copied.

    Output ``o`` reads input ``k`` where some tap of the pair is larger than ``zero`` (NaN is).
    """

    taps: Array
    zero: float = 0.0

    @property
    def num_inputs(self) -> int:
        return int(self.taps.shape[0] * self.taps.shape[2])

    @property
    def num_outputs(self) -> int:
        return int(self.taps.shape[0] * self.taps.shape[1])

    def reading(self, inputs: Mask) -> Mask:
        """Return bool[out]: the outputs that read any of ``inputs`` (bool[in])."""
        return _any(self.taps, self.zero, inputs.reshape(self.taps.shape[0], self.taps.shape[2]))

    def read_by(self, outputs: Mask) -> Mask:
        """Return bool[in]: the inputs that any of ``outputs`` (bool[out]) reads."""
        return _any(self.taps.swapaxes(1, 2), self.zero, outputs.reshape(self.taps.shape[:2]))

    def total(self, outputs: Mask, constants: Array) -> Array:
        """Return float64[out]: Σ_k constants[k] · Σ_taps W[o, k] for the chosen ``outputs``, 0 elsewhere.

        ``constants`` is float64[in]; the taps of an input whose constant is 0 are not looked at.
        """
        groups, outs, ins, _ = self.taps.shape
        rows, c = outputs.reshape(groups, outs), constants.reshape(groups, ins)
        if groups > 1:
            wanted = rows[:, :, None] & (c != 0)[:, None, :]
            sums = np.where(wanted, self.taps.sum(axis=3, dtype=np.float64), 0.0)
            grouped: Array = np.einsum("goi,gi->go", sums, c)
            return grouped.ravel()
        result = np.zeros(outs)
        row, column = np.flatnonzero(rows), np.flatnonzero(c)
        if row.size and column.size:
            chosen = _chosen(self.taps[0], row, column)
            result[row] = np.einsum("oit->oi", chosen, dtype=np.float64) @ c[0, column]
        return result


def weight_of(node: Node, array: Array) -> Weight | None:
    """View the weight of an affine ``node`` (of a matmul with a two-axis b); None for others."""
    groups = conv_groups(node)
    if is_spatial(node) != (array.ndim > 2) or array.ndim < 2 or array.shape[0] % groups:
        return None
    taps = array.reshape(groups, array.shape[0] // groups, array.shape[1], math.prod(array.shape[2:]))
    return Weight(taps if out_axis(node) == 0 else taps.swapaxes(1, 2), negligible(array))


def _chosen(taps: Array, row: Ids, column: Ids) -> Array:
    """Return number[rows, columns, tap]; where whole columns are wanted, in a third of the time."""
    if row.size == len(taps) and taps.flags.c_contiguous and taps.flags.aligned:
        return taps.take(column, axis=1)
    return taps[np.ix_(row, column)]


def _any(taps: Array, zero: float, columns: Mask) -> Mask:
    """Return bool[g·rows]: does number[g, row, column, tap] have a tap larger than ``zero`` in the chosen columns?"""
    if taps.shape[0] > 1:
        return (_nonzero(taps, zero) & columns[:, None, :]).any(axis=2).ravel()
    first = int(columns[0].argmax()) if columns.size else 0
    if not columns.size or not columns[0, first]:
        return np.zeros(taps.shape[1], dtype=np.bool_)
    found = _nonzero(taps[0, :, first], zero)
    if np.count_nonzero(found) == found.size:
        return found
    chosen = np.flatnonzero(columns[0])
    for part in (chosen[1:PROBE], chosen[PROBE:]):
        rest = np.flatnonzero(~found)
        if part.size and rest.size:
            found[rest] = _nonzero(taps[0][np.ix_(rest, part)], zero).any(axis=1)
    return found


def _nonzero(taps: Array, zero: float) -> Mask:
    """Return bool[..., tap gone]: True where any tap is larger than ``zero``, or NaN."""
    limit = taps.dtype.type(zero)
    if taps.dtype.itemsize == 2 and taps.dtype.kind not in "iu":
        # Half and bfloat16 compare slowly; without their sign, their bits are ordered as they are.
        taps, limit = np.ascontiguousarray(taps).view(np.uint16) & 0x7FFF, np.asarray(limit).view(np.uint16)
    found = np.zeros(taps.shape[:-1], dtype=np.bool_)
    for tap in range(taps.shape[-1]):
        column = taps[..., tap]
        found |= column != 0 if zero == 0 else ~(np.abs(column) <= limit)
        if np.count_nonzero(found) == found.size:
            break  # in most weights the first tap settles it
    return found
