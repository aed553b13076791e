"""Progress with the time that is left.

Owns the sentences: what is being done, the step of it, and how long the rest takes if it goes on as it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Countdown:
    """Tells what begins, and what is being done within it."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._what, self._count, self._done, self._started = "", 0, -1, 0.0

    def counts(self, count: int) -> None:
        """Begin to count: so many parts of about the same length follow."""
        self._count, self._done, self._started = count, -1, time.perf_counter()

    def begins(self, what: str) -> None:
        """Tell what begins; the time left is known once one part has ended."""
        self._done += 1
        taken = time.perf_counter() - self._started
        left = taken / self._done * (self._count - self._done) if self._done > 0 and self._count else 0.0
        self._what = what + (f", about {duration(left)} left" if left else "")
        self._progress(self._what)

    def tells(self, step: str) -> None:
        """Tell what is being done within what has begun."""
        if step:
            self._progress(step if step.startswith(self._what) else f"{self._what}: {step}")


def duration(seconds: float) -> str:
    """Write seconds for people, as exact as an estimate is."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
