"""Progress of a run on the terminal.

Owns the ``Progress`` protocol, which the loop calls, and its three forms: nothing, plain lines, and a bar
drawn by rich on stderr. The numbers come from the loop's log rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from prunec.report.wording import PHASE_NAMES, SCORE_NAMES

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress(Protocol):
    """Receives the progress of a run."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase of ``total`` steps begins, or continues after ``done`` of them."""

    def step(self, done: int) -> None:
        """``done`` steps of the phase are complete. Must be quick: it is called at every step."""

    def row(self, row: Mapping[str, Any], full_params: int) -> None:
        """A log row was written; ``full_params`` is the size of the network before pruning."""

    def note(self, text: str) -> None:
        """Something a person should read."""

    def close(self) -> None:
        """The run has ended, successfully or not."""


class Silent:
    """Shows nothing."""

    def phase(self, name: str, total: int, done: int) -> None:
        pass

    def step(self, done: int) -> None:
        pass

    def row(self, row: Mapping[str, Any], full_params: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines(Silent):
    """A line per phase and per log row: for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every: int = 5) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._every = every
        self._rows = 0

    def phase(self, name: str, total: int, done: int) -> None:
        self.note(f"{PHASE_NAMES.get(name, name)}: {total} steps" + (f", from step {done}" if done else ""))

    def row(self, row: Mapping[str, Any], full_params: int) -> None:
        if self._rows % self._every == 0:
            self.note(f"step {row['step']:>6}  {describe(row, full_params)}")
        self._rows += 1

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Bar(Silent):
    """A bar per phase with the present numbers beside it, drawn by rich on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
        )
        self._rich.start()
        self._task: TaskID | None = None

    def phase(self, name: str, total: int, done: int) -> None:
        self._task = self._rich.add_task(PHASE_NAMES.get(name, name), total=total, completed=done, numbers="")

    def step(self, done: int) -> None:
        if self._task is not None:
            self._rich.update(self._task, completed=done)

    def row(self, row: Mapping[str, Any], full_params: int) -> None:
        if self._task is not None:
            self._rich.update(self._task, numbers=describe(row, full_params))

    def note(self, text: str) -> None:
        self._rich.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._rich.stop()


def for_stream(stream: TextIO | None = None) -> Progress:
    """Return a bar if stderr is a terminal, else lines."""
    stream = stream if stream is not None else sys.stderr
    return Bar() if stream.isatty() else Lines(stream)


def describe(row: Mapping[str, Any], full_params: int) -> str:
    """Return the numbers of a log row on one short line."""
    parts = [f"loss {row['loss']:.3f}"]
    # The first score in a row is the one that counts.
    parts += [f"{name} {row[key]:.1%}" for key, name in SCORE_NAMES.items() if row.get(key) is not None][:1]
    if row.get("sparsity") is not None:
        parts.append(f"sparsity {row['sparsity']:.1%}")
        parts.append(f"lasso {row['lasso']:.3g}")
    if row.get("params_if_pruned") is not None and full_params:
        parts.append(f"size {row['params_if_pruned'] / full_params:.1%}")
    return "  ".join(parts)
