"""metrics.jsonl: one JSON object per log step, valid line by line whenever the run is killed.

Owns the file and the running sums between log steps. Which numbers go in is loop.py's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from prunec.files import read_lines, write_text

Row = Mapping[str, Any]


class MetricsFile:
    """Appends rows, each flushed as a whole line.

    Args:
        path: made when missing. Rows after ``last_step`` (written by a run that was killed before its next
            checkpoint), and a half-written last line, are cut off first.
        last_step: 0 starts the file afresh.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [row for row in read_lines(path) if row["step"] <= last_step] if path.exists() and last_step else []
        write_text(path, "".join(_line(row) for row in kept))
        self._path = path

    def append(self, row: Row) -> None:
        """Write one row; numbers that are not finite become null."""
        # One write of a whole line to a file opened for appending: a reader never sees half of it.
        with open(self._path, "ab", buffering=0) as file:
            file.write(_line(row).encode())

    def flush_to_disk(self) -> None:
        """Make sure that the rows outlive a power cut; called with each checkpoint."""
        with open(self._path, "rb+") as file:
            os.fsync(file.fileno())


def _line(row: Row) -> str:
    return json.dumps({key: _finite(value) for key, value in row.items()}, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class WindowState(TypedDict):
    """What is saved of a ``Window``."""

    loss: float
    correct: int
    batches: int
    images: int


class Window:
    """Sums of loss and hits since the last log step, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._batches = 0
        self._images = 0

    @torch.no_grad()
    def add(self, loss: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in one batch: its mean loss, float[N, classes] and int64[N]."""
        self._loss += loss.detach()
        self._correct += (scores.argmax(1) == labels).sum()
        self._batches += 1
        self._images += len(labels)

    def read(self) -> tuple[float, float]:
        """Return mean loss and accuracy since the last call, and start afresh. This waits for the device."""
        state = self.state_dict()
        self.load_state_dict({"loss": 0.0, "correct": 0, "batches": 0, "images": 0})
        return state["loss"] / max(1, state["batches"]), state["correct"] / max(1, state["images"])

    def state_dict(self) -> WindowState:
        """Return the sums."""
        return {
            "loss": float(self._loss),
            "correct": int(self._correct),
            "batches": self._batches,
            "images": self._images,
        }

    def load_state_dict(self, state: WindowState) -> None:
        """Go on from saved sums."""
        self._loss.fill_(state["loss"])
        self._correct.fill_(state["correct"])
        self._batches, self._images = state["batches"], state["images"]
