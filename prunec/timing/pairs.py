"""The time of a pruned file as a share of its original's.

Owns how to measure it reproducibly; single runs are prunec/runtime/sessions.py's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from prunec.runtime import sessions
from prunec.runtime.probes import Feed
from prunec.timing import latency

PROVIDER: Literal["cpu"] = "cpu"
_FEWEST, _MOST, _RUNS, _SECONDS = 3, 9, 30, 6.0
"""How often two files are opened, the rounds each time, and the seconds after which they are not opened again."""

Pair = tuple[float, float]
"""Milliseconds of the original and of the pruned file."""


ONE = 1
"""Threads for reproducible times: with more, all threads wait for the last one, which other work on the machine
delays."""


def timed(original: Path, pruned: Path, feed: Feed, *, threads: int = 0) -> Pair:
    """Return the median milliseconds of two files in ONNX Runtime on the CPU, at its default level.

    They are opened and timed several times, because other work on the machine and the layout of memory move single
    medians by a tenth. The pair with the median ratio counts.

    Args:
        feed: what both run on.
        threads: as for ``sessions.open_runner``.
    """
    pairs: list[Pair] = []
    started = time.perf_counter()
    while len(pairs) < _FEWEST or (len(pairs) < _MOST and time.perf_counter() - started < _SECONDS):
        before = sessions.open_runner(original, "the unpruned network", PROVIDER, optimise=True, threads=threads)
        after = sessions.open_runner(pruned, "the pruned network", PROVIDER, optimise=True, threads=threads)
        pairs.append(latency.interleaved_latency(before, after, feed, _RUNS, _SECONDS / _FEWEST))
    return middle(pairs)


def ratio(pair: Pair) -> float:
    """Return the pruned file's share of the original's time."""
    return pair[1] / pair[0]


def middle(pairs: Sequence[Pair]) -> Pair:
    """Return the pair with the median ratio."""
    return sorted(pairs, key=ratio)[len(pairs) // 2]
