"""The run that the tests of runs look at: a whole one, on the bars."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_bars import config

from prunec.training.run.run import train_prune


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_prune(config(folder, bars))
    return folder
