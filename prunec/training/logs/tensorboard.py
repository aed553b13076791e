"""The log as TensorBoard curves, beside metrics.jsonl.

Owns the ``tensorboard`` folder of a run. loop.py supplies the numbers; metrics.jsonl is the authoritative log.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from prunec.errors import MissingDependency
from prunec.training.logs.metrics import MetricsFile, Row


def require_tensorboard() -> None:
    """Find out before a run whether curves can be written.

    Raises:
        MissingDependency: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingDependency("--tensorboard needs TensorBoard", do="pip install 'prunec[tensorboard]'")


class Curves:
    """Writes each row to metrics.jsonl and its numbers to TensorBoard.

    Args:
        file: the log.
        folder: of TensorBoard's files; created if missing.
        last_step: curves beyond it, of a run that was killed before its next checkpoint, are not shown.
    """

    def __init__(self, file: MetricsFile, folder: Path, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._file = file
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def append(self, row: Row) -> None:
        self._file.append(row)
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def flush_to_disk(self) -> None:
        self._file.flush_to_disk()
        self._writer.flush()
