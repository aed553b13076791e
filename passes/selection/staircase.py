"""Staircases: scores by which channels go in the steps in which widths change, or in which time falls.

Owns how steps and a clock change the order of channels. A whole step goes or none of it, so it goes at the mean of its
channels' scores, not at the highest. With a clock, the last channel of a step is free of charge, and the first below it
costs the whole step, so channels of one step go together, at their mean score; a step that saves next to nothing goes
with the one that follows it, or last of all where none does. What a network takes at some width is for the clock to say
(prunec/timing/staircases.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from prunec.ir.arrays import Floats, Ids

Saved = Callable[[Ids], float]
"""classes that go -> the share of the network's time that this saves."""

_WORTH = 0.5
"""A step is one of its own where it saves this part of what a step of its group saves on the average."""
_ASKED = 8
"""Widths of a group that the clock is asked for, at most."""
_NOTHING = 1e-3
"""Of the network's time: a group that saves less, however narrow it gets, goes last."""


def in_blocks(scores: Floats, group: Ids, step: int) -> Floats:
    """Return the scores of a coupled group's channels, float64[group]: equal within a step; the last step's as given.

    Args:
        scores, group, step: as for ``stepped``.
    """
    order = np.argsort(scores[group], kind="stable")
    result = scores[group].copy()
    for start, end in pairwise([0, *_ends(group.size, step)]):
        result[order[start:end]] = result[order[start:end]].mean()
    return result


def _ends(size: int, step: int) -> list[int]:
    """Return after how many channels that go a group has a width that it may have; the last step stays."""
    return list(range(size % step or step, size, step))


def stepped(scores: Floats, group: Ids, step: int, saved: Saved) -> Floats:
    """Return the scores of a coupled group's channels, float64[group]: equal within a step of time, and rising.

    Args:
        scores: float64[num_classes].
        group: classes of which any may go but the last ``step``.
        step: in which the group's width changes.
    """
    order = np.argsort(scores[group], kind="stable")
    result = scores[group].copy()
    if group.size <= step or not np.isfinite(result).all():
        return result
    ends = _ends(group.size, step)
    savings = _savings(ends, lambda end: saved(group[order[:end]]))
    before, cuts = 0.0, _worthwhile(ends, savings) if savings[-1] >= _NOTHING else []
    for start, end in pairwise([0, *cuts]):
        before = max(before, float(result[order[start:end]].mean()))
        result[order[start:end]] = before
    rest = order[cuts[-1] if cuts else 0 :]
    result[rest] += _last(scores)  # what saves no time goes when all else has gone
    return result


def _savings(ends: Sequence[int], saved: Callable[[int], float]) -> list[float]:
    """Return what is saved at each end, rising; of many ends some are asked for, and lines drawn in between."""
    asked = sorted({ends[round(at)] for at in np.linspace(0, len(ends) - 1, min(len(ends), _ASKED))})
    found = np.maximum.accumulate([0.0, *(saved(end) for end in asked)])
    return [float(saving) for saving in np.interp(ends, [0, *asked], found)]


def _worthwhile(ends: Sequence[int], savings: Sequence[float]) -> list[int]:
    """Return where steps end that are worth taking, none or more: each saves its part of the average, per channel."""
    average = savings[-1] / ends[-1]
    found: list[tuple[int, float]] = [(0, 0.0)]
    for end, saving in zip(ends, savings, strict=True):
        if saving - found[-1][1] >= _WORTH * average * (end - found[-1][0]):
            found.append((end, saving))
    return [end for end, _ in found[1:]]


def _last(scores: Floats) -> float:
    known = scores[np.isfinite(scores)]
    return float(known.max()) + 1.0 if known.size else 0.0
