"""Outputs that look like class scores, and the probabilities that they stand for."""

from __future__ import annotations

import numpy as np

from prunec.ir.arrays import Array, Floats

_MOST_CLASSES = 100_000
_TINY = 1e-12


def is_scores(a: Array) -> bool:
    """Tell whether an output has a number per class: [rows, classes], [rows, 1, classes] or [rows, classes, 1, 1].

    [rows, n, 1] is taken for n anchors of a detector, which compete for nothing.
    """
    if a.ndim == 3 and a.shape[2] == 1:
        return False
    sizes = [size for size in a.shape[1:] if size != 1]
    return a.dtype.kind == "f" and a.ndim >= 2 and len(sizes) == 1 and 2 <= sizes[0] <= _MOST_CLASSES


def log_probabilities(scores: Array) -> Floats:
    """Return float64[rows, classes], the logarithms of the probabilities that scores stand for.

    Rows that are probabilities already are taken as they are, others for logits.
    """
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    if rows.size and rows.min() >= 0 and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(rows, _TINY))
    with np.errstate(invalid="ignore"):  # infinite scores give NaN, which no judge prefers
        rows = rows - rows.max(axis=1, keepdims=True)
        found: Floats = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return found
