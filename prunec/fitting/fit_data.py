"""Samples -> what is fitted on and what is held out, in batches worth running.

Owns the split (every fourth sample is held out, and never fitted on) and the joining of small batches. Reading and
checking of files is samples.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunec.data.samples import MAX_ROWS, Samples, first_that_runs, num_rows
from prunec.errors import BadInput
from prunec.runtime.probes import Feed

HELD_OUT_EVERY = 4
LEAST_FOR_HOLDING_OUT = 8
_ROWS = 128
_ELEMENTS = 1 << 20
"""A batch has at most so many rows, and so many elements of its largest input; a single row may have more."""


@dataclass(frozen=True, slots=True, eq=False)
class FitData:
    """What a pruning by data works on.

    Args:
        name: the folder or file, for messages.
        fitted, held_out: batches; no sample is in both. Nothing is held out of fewer than eight samples.
        num_fitted, num_held_out: samples in each.
        rows_held_out: the place of each held-out sample among all, in order.
        labels: the class of each sample, held out or not; None where there are none.
        rows: the most rows that iterating gives at once; 0: the batches cannot be cut.
    """

    name: str
    fitted: tuple[Feed, ...]
    held_out: tuple[Feed, ...]
    num_fitted: int
    num_held_out: int
    rows_held_out: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    rows: int = 0

    def __iter__(self) -> Iterator[Feed]:
        """Yield what is fitted on, in small batches, as samples come from disk."""
        for feed in self.fitted:
            if not self.rows:
                yield feed
                continue
            for at in range(0, num_rows(feed), self.rows):
                yield {name: value[at : at + self.rows] for name, value in feed.items()}

    def first(self) -> Feed:
        """Return the first batch."""
        return next(iter(self))

    def that_run(self, run: Callable[[Feed], object], model: str) -> FitData:
        """Return these, in batches that ``run`` takes; see samples.py."""
        return first_that_runs((self, replace(self, rows=min(1, self.rows))), run, model)

    @property
    def labels_held_out(self) -> tuple[int, ...] | None:
        """The class of each held-out sample, in the order of the batches."""
        return None if self.labels is None else tuple(self.labels[row] for row in self.rows_held_out)


def fit_data(
    samples: Samples, run: Callable[[Feed], object], labels: Callable[[Samples, int], tuple[int, ...]] | None = None
) -> FitData:
    """Split samples, and join what can be joined.

    Args:
        run: the model: batches that it does not take are given one by one, as they come.
        labels: finds the class of each of so many samples; see labelled.py.

    Raises:
        BadInput: all samples are the same, or one cannot be read; see samples.py.
    """
    singles = list(_singles(samples))
    count = sum(rows for _, rows in singles)
    holds = count >= LEAST_FOR_HOLDING_OUT
    parts: tuple[list[Feed], list[Feed]] = ([], [])
    held_rows, at = [], 0
    for number, (feed, rows) in enumerate(singles):
        held = holds and number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        parts[held].append(feed)
        held_rows += list(range(at, at + rows)) if held else []
        at += rows
    _refuse_constant(samples.name, parts[0])
    joined = _joinable(samples) and _runs(run, parts[0])
    fitted, held_out = (tuple(_joined(part)) if joined else tuple(part) for part in parts)
    counts = [sum(map(num_rows, part)) for part in (fitted, held_out)]
    known = None if labels is None else labels(samples, count)
    return FitData(
        samples.name, fitted, held_out, counts[0], counts[1], tuple(held_rows), known, MAX_ROWS if joined else 0
    )


def _singles(samples: Samples) -> Iterator[tuple[Feed, int]]:
    """Yield batches of one sample where the model takes them, else of as many as it takes."""
    open_batch = _joinable(samples)
    for feed in samples:
        rows = num_rows(feed)
        if not open_batch or any(len(value) != rows for value in feed.values()):
            yield feed, rows
            continue
        for row in range(rows):
            yield {name: value[row : row + 1] for name, value in feed.items()}, 1


def _joinable(samples: Samples) -> bool:
    return all(slot.shape and not isinstance(slot.shape[0], int) for slot in samples.slots)


def _runs(run: Callable[[Feed], object], feeds: Sequence[Feed]) -> bool:
    """Tell whether the model takes batches: a batch size that is written into a reshape shows only here."""
    first = next(_joined(feeds), None)
    if first is None or num_rows(first) == 1:
        return False
    try:
        run(first)
    except Exception:  # noqa: BLE001 - runtimes and user modules raise anything
        return False
    return True


def _joined(feeds: Iterable[Feed]) -> Iterator[Feed]:
    waiting: list[Feed] = []
    for feed in feeds:
        if waiting and (_shapes(feed) != _shapes(waiting[0]) or len(waiting) >= _most(feed)):
            yield _stacked(waiting)
            waiting = []
        waiting.append(feed)
    if waiting:
        yield _stacked(waiting)


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: value.shape[1:] for name, value in feed.items()}


def _most(feed: Feed) -> int:
    largest = max((math.prod(value.shape[1:]) for value in feed.values()), default=1)
    return max(1, min(_ROWS, _ELEMENTS // max(1, largest)))


def _stacked(feeds: Sequence[Feed]) -> Feed:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _refuse_constant(name: str, feeds: Sequence[Feed]) -> None:
    first = feeds[0]
    flat = all(value.size > 1 and bool((value == value.flat[0]).all()) for value in first.values())
    for feed in feeds[1:]:
        if any(value.shape != first[key].shape or not np.array_equal(value, first[key]) for key, value in feed.items()):
            return
    if len(feeds) > 1 or flat:
        raise BadInput(
            f"the data in {name} are constant",
            why="all samples are the same: they do not show which channels make up for which",
            do="give inputs as the network meets them, some hundred of them",
        )
