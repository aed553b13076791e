"""Samples -> those to fit on and those held out, in batches worth running.

Owns the split (every fourth sample is held out, and never fitted on), the joining of small batches, and their storage:
decoded once, in memory or on disk. Reading and checking of files is samples.py's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunec.data.samples import MAX_ROWS, Samples, first_that_runs, num_rows
from prunec.errors import BadInput
from prunec.fitting.stages import Store
from prunec.runtime.probes import Feed

HELD_OUT_EVERY = 4
LEAST_FOR_HOLDING_OUT = 8
_HELD = 128 << 20
"""Bytes of inputs kept in memory, each for fitted and held-out samples; the rest lies on disk."""
_ROWS = 128
_ELEMENTS = 1 << 20
"""Most rows of a batch, and most elements of its largest input; a single row may have more."""


@dataclass(frozen=True, slots=True, eq=False)
class FitData:
    """The samples that a pruning by data uses.

    Args:
        name: the folder or file, for messages.
        fitted, held_out: batches; no sample is in both. With fewer than eight samples none is held out.
        num_fitted, num_held_out: samples in each.
        rows_held_out: the index of each held-out sample among all, in order.
        labels: the class of each sample, held out or not; None without labels.
        rows: the most rows of a batch when iterating; 0: the batches cannot be cut.
    """

    name: str
    fitted: Sequence[Feed]
    held_out: Sequence[Feed]
    num_fitted: int
    num_held_out: int
    rows_held_out: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    rows: int = 0

    def __iter__(self) -> Iterator[Feed]:
        """Yield the samples to fit on, in small batches."""
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
        """Return the same samples in batches that ``run`` accepts; see samples.py."""
        return first_that_runs((self, replace(self, rows=min(1, self.rows))), run, model)

    @property
    def cuts(self) -> bool:
        """Whether batches may be cut and joined."""
        return self.rows > 0

    @property
    def labels_held_out(self) -> tuple[int, ...] | None:
        """The class of each held-out sample, in the order of the batches."""
        return None if self.labels is None else tuple(self.labels[row] for row in self.rows_held_out)


def fit_data(
    samples: Samples, run: Callable[[Feed], object], labels: Callable[[Samples, int], tuple[int, ...]] | None = None
) -> FitData:
    """Split samples, and join small batches of equal shapes.

    Args:
        run: the model; batches that it does not accept are not joined.
        labels: returns the class of each sample, given their number; see labelled.py.

    Raises:
        BadInput: all samples are the same, or one cannot be read; see samples.py.
    """
    holds = _enough_to_hold_out(samples)
    joined = _joinable(samples) and _runs(run, samples, holds)
    parts = _Batches(joined=joined), _Batches(joined=joined)
    changes, held_rows, at = _Changes(), list[int](), 0
    for number, (feed, rows) in enumerate(_singles(samples)):
        held = holds and _is_held_out(number)
        parts[held].add(feed)
        held_rows += list(range(at, at + rows)) if held else []
        at += rows
        if not held:
            changes.add(feed)
    if not changes.any:
        raise BadInput(
            f"the data in {samples.name} are constant",
            why="all samples are the same: they do not show which channels make up for which",
            do="give a few hundred typical inputs",
        )
    fitted, held_out = (part.closed() for part in parts)
    known = None if labels is None else labels(samples, at)
    counts = at - len(held_rows), len(held_rows)
    return FitData(samples.name, fitted, held_out, *counts, tuple(held_rows), known, MAX_ROWS if joined else 0)


class _Batches(Sequence[Feed]):
    """Collects batches and stores them: in memory up to a limit, on disk beyond it.

    Args:
        joined: samples of one shape become one batch.
    """

    def __init__(self, *, joined: bool) -> None:
        self._joined, self._waiting = joined, list[Feed]()
        self._store, self._names = Store(_HELD), list[tuple[str, ...]]()

    def add(self, feed: Feed) -> None:
        waiting = self._waiting
        if waiting and (_shapes(feed) != _shapes(waiting[0]) or len(waiting) >= (_most(feed) if self._joined else 1)):
            self.closed()
        self._waiting.append(feed)

    def closed(self) -> _Batches:
        """Make a batch of the samples that are still waiting for one; return self."""
        if self._waiting:
            for name, value in _stacked(self._waiting).items():
                self._store.put(name, len(self._names), value)
            self._names.append(tuple(self._waiting[0]))
            self._waiting = []
        return self

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        return {name: self._store.get(name, number) for name in self._names[number]}


class _Changes:
    """Whether samples differ from each other (or the values of the only sample do)."""

    def __init__(self) -> None:
        self._first: Feed | None = None
        self._differ, self._count = False, 0

    def add(self, feed: Feed) -> None:
        self._count += 1
        first = self._first = self._first or feed
        self._differ = self._differ or any(not np.array_equal(value, first[key]) for key, value in feed.items())

    @property
    def any(self) -> bool:
        if self._count > 1 or self._first is None:
            return self._differ
        return not all(value.size > 1 and bool((value == value.flat[0]).all()) for value in self._first.values())


def _singles(samples: Samples) -> Iterator[tuple[Feed, int]]:
    """Yield batches of one sample if the model accepts them, else of as many as it needs."""
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


def _enough_to_hold_out(samples: Samples) -> bool:
    counts = itertools.accumulate(rows for _, rows in _singles(samples))
    return any(count >= LEAST_FOR_HOLDING_OUT for count in counts)


def _is_held_out(number: int) -> bool:
    return number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _runs(run: Callable[[Feed], object], samples: Samples, holds: bool) -> bool:
    """Tell whether the model runs on such batches: a batch size written into a reshape shows only when it runs."""
    first = _Batches(joined=True)
    for number, (feed, _) in enumerate(_singles(samples)):
        if not (holds and _is_held_out(number)):
            first.add(feed)
        if len(first):
            break
    batch = first.closed()[0]
    if num_rows(batch) == 1:
        return False
    try:
        run(batch)
    except Exception:  # noqa: BLE001 - runtimes and user modules raise anything
        return False
    return True


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: value.shape[1:] for name, value in feed.items()}


def _most(feed: Feed) -> int:
    largest = max((math.prod(value.shape[1:]) for value in feed.values()), default=1)
    return max(1, min(_ROWS, _ELEMENTS // max(1, largest)))


def _stacked(feeds: Sequence[Feed]) -> Feed:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
