"""Fixtures of the training tests: the weights that their runs begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_bars import config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    """Return the weights of a network that tells the bars apart; nothing was removed from it."""
    from prunec.training.run.run import train_prune

    folder = tmp_path_factory.mktemp("trained") / "run"
    result = train_prune(config(folder, bars, rho=0.0, normalise="imagenet"))
    assert result.score["after"] >= 0.9
    assert result.after == result.before
    return folder / "pruned.safetensors"
