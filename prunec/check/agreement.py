"""How well two networks agree on held-out inputs, in terms that suit their outputs.

Owns the measures: the relative error of every output, the share of equal argmax if it looks like class scores, the
overlap of masks if it looks like one, and the accuracy if labels are given. fit_data.py sees to it that no input was
fitted. Result types are in prunec/report/findings.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.check.comparison import Run, labels_of
from prunec.data.samples import num_rows
from prunec.ir.arrays import Array
from prunec.report.findings import Agreement, OutputAgreement
from prunec.runtime.probes import Feed
from prunec.runtime.scores import is_scores

_LEAST_SIDE = 8
"""The least side in pixels with which two axes of an output are taken for a picture."""
_MOST_ASPECT = 8
"""Its longer side over its shorter one."""

_LEAST_FOREGROUND = 1e-3
"""Share of the original's pixels below which its mask counts as empty, and overlap means nothing."""


@dataclass(slots=True)
class _Seen:
    """What has been seen of one output."""

    squares: float = 0.0
    total: float = 0.0
    equal: int = 0
    votes: int = 0
    both: float = 0.0
    either: float = 0.0
    foreground: float = 0.0
    pixels: int = 0
    elements: int = 0
    lost: int = 0


def agreement(
    run_a: Run,
    run_b: Run,
    names: Sequence[str],
    feeds: Iterable[Feed],
    labels: Sequence[int] | None = None,
) -> Agreement:
    """Run both networks on all feeds.

    Args:
        labels: the class of each sample, in the order of the feeds; they are compared with the first output that looks
            like class scores.
    """
    seen: list[_Seen] = []
    right = [0, 0]
    count = 0
    for feed in feeds:
        before, after = run_a(feed), run_b(feed)
        seen = seen or [_Seen() for _ in before]
        rows = num_rows(feed)
        for entry, a, b in zip(seen, before, after, strict=True):
            _add(entry, a, b)
        if labels is not None:
            wanted = np.asarray(labels[count : count + rows])
            scores = next((i for i, a in enumerate(before) if is_scores(a) and len(a) == rows), None)
            if scores is not None:
                for which, outputs in enumerate((before, after)):
                    right[which] += int((outputs[scores].reshape(rows, -1).argmax(axis=1) == wanted).sum())
        count += rows
    told = tuple(_measures(labels_of(names, index), entry) for index, entry in enumerate(seen))
    accuracy = [hits / count if labels is not None and count else None for hits in right]
    return Agreement(count, told, accuracy[0], accuracy[1])


def num_classes(outputs: Iterable[Array]) -> int | None:
    """Return the number of classes of the first output that looks like class scores; None if none does."""
    return next((math.prod(a.shape[1:]) for a in outputs if is_scores(a)), None)


def _threshold(a: Array) -> float:
    """Return the threshold of the foreground in a mask of one channel: 0.5 if all is between 0 and 1, else 0."""
    return 0.5 if a.dtype.kind == "f" and a.size and float(a.min()) >= 0 and float(a.max()) <= 1 else 0.0


def _mask_of(a: Array, middle: float) -> Array | None:
    """Return the mask that an output shows: integer classes per pixel, or whether each pixel is in the foreground.

    [rows, classes, H, W] (or classes last) gives the best class of each pixel, [rows, 1, H, W] what is above the
    middle.
    """
    if a.dtype.kind != "f" or a.ndim not in (3, 4) or min(a.shape[-2:]) < 1:
        return None
    if a.ndim == 4 and 1 < a.shape[1] <= 256 and min(a.shape[2:]) >= _LEAST_SIDE:
        return np.asarray(a.argmax(axis=1))
    if a.ndim == 4 and 1 < a.shape[3] <= 256 and min(a.shape[1:3]) >= _LEAST_SIDE and a.shape[1] > a.shape[3]:
        return np.asarray(a.argmax(axis=3))
    single = a.ndim == 3 or 1 in (a.shape[1], a.shape[3])
    sides = sorted(a.shape[1:])[-2:]
    # A picture is not so narrow: [rows, anchors, 16] holds the boxes of a detector.
    if not single or sides[0] < _LEAST_SIDE or sides[1] > _MOST_ASPECT * sides[0]:
        return None
    found: Array = (a > middle).astype(np.int64)
    return found


def _add(entry: _Seen, a: Array, b: Array) -> None:
    if a.dtype.kind in "fc" and a.size:
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        entry.elements += finite.size
        entry.lost += int((np.isfinite(x) & ~finite).sum())
        x, y = x[finite], y[finite]
        entry.squares += float(np.square(x - y).sum())
        entry.total += float(np.square(x).sum())
    elif a.size and a.shape == b.shape:
        entry.squares += float((a != b).sum())
        entry.total += a.size
        entry.equal += int((a == b).sum())
        entry.votes += a.size
    if is_scores(a):
        flat = (a.reshape(len(a), -1), b.reshape(len(b), -1))
        entry.equal += int((flat[0].argmax(axis=1) == flat[1].argmax(axis=1)).sum())
        entry.votes += len(a)
    masks = (_mask_of(a, _threshold(a)), _mask_of(b, _threshold(a))) if a.shape == b.shape else (None, None)
    if masks[0] is not None and masks[1] is not None:
        front = (masks[0] > 0, masks[1] > 0)
        entry.foreground += float(front[0].sum())
        entry.pixels += front[0].size
        entry.both += float(((masks[0] == masks[1]) & front[0]).sum())
        entry.either += float((front[0] | front[1]).sum())


def _measures(name: str, entry: _Seen) -> OutputAgreement:
    """Return the measures; the error is of the root mean square, over the root mean square of the original's output."""
    error = math.sqrt(entry.squares / entry.total) if entry.total else 0.0
    return OutputAgreement(
        name,
        error,
        entry.equal / entry.votes if entry.votes else None,
        entry.both / entry.either if entry.foreground > _LEAST_FOREGROUND * entry.pixels else None,
        entry.lost / max(1, entry.elements),
    )
