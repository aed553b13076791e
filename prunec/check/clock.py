"""How long a check may take, and reports of what it is doing.

Owns the clock. comparison.py and pair.py decide what is left out if time runs short.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

CHECK_TIME = 60.0
"""Default seconds for a check and the timing together."""

SILENCE_S = 2.0
"""A check that takes longer than this reports what it does: at every change, and at intervals in between."""
_STILL_S = 15.0

Tell = Callable[[str], None]


class Budget:
    """The time of one check; it starts to run when it is made.

    Args:
        seconds: the most that the check should take. At least one input is compared, and one decided by the referee,
            however long that takes.
        tell: called with sentences for a person; None: nothing is reported.
    """

    def __init__(self, seconds: float = CHECK_TIME, tell: Tell | None = None) -> None:
        self.seconds = seconds
        self._tell = tell
        self._started = time.perf_counter()
        self._doing = ""

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started

    @property
    def left(self) -> float:
        """Seconds that are left, below 0 when overrun."""
        return self.seconds - self.spent

    def now(self, doing: str) -> None:
        """Note what is being done: "the original on noise"."""
        self._doing = doing

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Report, from another thread, what is being done within the block once it has taken a while."""
        if self._tell is None:
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._report, args=(self._tell, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _clock(self, spent: float) -> str:
        if spent <= self.seconds:
            return f"{spent:.0f} s of at most {self.seconds:.0f} s"
        return f"{spent:.0f} s, over the {self.seconds:.0f} s asked for: at least one input is tried"

    def _report(self, tell: Tell, done: threading.Event) -> None:
        told, when = "", 0.0
        wait = SILENCE_S
        while not done.wait(wait):
            wait = 0.5
            doing, spent = self._doing, self.spent
            if doing and (doing != told or spent - when >= _STILL_S):
                tell(f"checking: {doing} ({self._clock(spent)})")
                told, when = doing, spent
