"""metrics.jsonl: one JSON object per log step, valid line by line even if the run is killed.

Owns the file and the running sums between log steps. loop.py supplies the numbers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from prunec.files import append_line, read_lines, write_text
from prunec.training.learning.objective import Objective
from prunec.training.learning.ranks import Ranks

Row = Mapping[str, Any]


class MetricsFile:
    """Appends rows, each flushed as a whole line.

    Args:
        path: created if missing. Rows after ``last_step`` (written by a run that was killed before its next
            checkpoint), and a half-written last line, are removed first.
        last_step: 0 starts a new file.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [row for row in read_lines(path) if row["step"] <= last_step] if path.exists() and last_step else []
        write_text(path, "".join(_line(row) for row in kept))
        self._path = path

    def append(self, row: Row) -> None:
        """Write one row; numbers that are not finite become null."""
        append_line(self._path, _line(row))

    def flush_to_disk(self) -> None:
        """Make sure that the rows survive a power cut; called with each checkpoint."""
        with open(self._path, "rb+") as file:
            os.fsync(file.fileno())


class NoMetrics:
    """The log of a rank that writes nothing."""

    def append(self, row: Row) -> None:
        pass

    def flush_to_disk(self) -> None:
        pass


def _line(row: Row) -> str:
    return json.dumps({key: _finite(value) for key, value in row.items()}, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class WindowState(TypedDict):
    """The saved state of a ``Window``."""

    loss: float
    tally: torch.Tensor
    batches: int


class Window:
    """Sums of loss and tallies since the last log step, kept on the device so that no step waits for it.

    They are added up over the ranks when they are read or saved, so that all ranks see the same numbers.
    """

    def __init__(self, device: torch.device, objective: Objective, ranks: Ranks) -> None:
        self._objective, self._ranks = objective, ranks
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._tally = objective.no_tally(device)
        self._batches = 0

    @torch.no_grad()
    def add(self, loss: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add one batch: its mean loss, the network's outputs and the targets."""
        self._loss += loss.detach()
        self._tally += self._objective.tally(logits.detach(), targets)
        self._batches += 1

    def read(self) -> tuple[float, dict[str, float]]:
        """Return mean loss and scores since the last call, and reset. This waits for the device."""
        sums = self.state_dict()
        self._loss.zero_()
        self._tally.zero_()
        self._batches = 0
        return sums["loss"] / max(1, sums["batches"]), self._objective.scores(sums["tally"])

    def state_dict(self) -> WindowState:
        """Return the sums."""
        return {
            "loss": float(self._ranks.add(self._loss)) / self._ranks.size,
            "tally": self._ranks.add(self._tally).cpu().clone(),
            "batches": self._batches,
        }

    def load_state_dict(self, state: WindowState) -> None:
        """Go on from saved sums; rank 0 keeps the tally for all."""
        self._loss.fill_(state["loss"])
        self._tally.copy_(state["tally"] if self._ranks.rank == 0 else torch.zeros_like(state["tally"]))
        self._batches = state["batches"]
