"""Runs that go wrong: losses that are no number, penalties that would empty the network, symptoms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_bars import Stop, StopAt, config

from prunec.errors import CheckFailed, EmptyNetwork
from prunec.files import read_lines
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import resume_config


def test_a_run_that_diverges_goes_on_with_a_smaller_learning_rate(tmp_path: Path, bars: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars, log_every=1), StopAt(15))
    with pytest.raises(CheckFailed, match="loss is not a number") as error:
        train_prune(resume_config(str(folder), lr=1e30))
    assert f"prunec train-prune -o {folder} --resume --lr" in error.value.do
    state = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["module"].values())
    result = train_prune(resume_config(str(folder), lr=0.05, rho=0.03))
    assert "lr 0.05 from step" not in " ".join(result.reasons)  # what the checkpoint was made with
    assert any(reason.startswith("rho 0.03 from step ") for reason in result.reasons)
    rows = read_lines(folder / "metrics.jsonl")
    assert max(row["rho"] for row in rows) == pytest.approx(0.03)
    assert json.loads((folder / "config.json").read_text())["rho"] == 0.03


def test_a_rho_that_would_empty_the_network_is_refused_before_it_does(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(EmptyNetwork, match="no channel would be left in front of") as error:
        train_prune(config(tmp_path / "run", bars, rho=50.0))
    assert "lower rho" in error.value.do
    assert error.value.exit_status == 1
    assert not (tmp_path / "run" / "pruned.onnx").exists()


def test_stopping_at_a_symptom_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, bars: Path) -> None:
    given = {"rho": 1e-3, "gamma_lr": 0.1, "on_symptom": "stop", "log_every": 2, "stop_on_plateau": False}
    with pytest.raises(CheckFailed, match="the lasso falls in a straight line") as error:
        train_prune(config(tmp_path / "run", bars, **given))
    assert error.value.exit_status == 1
    assert "lower alpha" in error.value.do
    assert not (tmp_path / "run" / "pruned.onnx").exists()
    train_prune(resume_config(str(tmp_path / "run")))
    assert (tmp_path / "run" / "pruned.onnx").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(CheckFailed, match="loss is not a number"):
        train_prune(config(tmp_path / "run", bars, lr=1e18, checkpoint_every=1, log_every=1))
    state = torch.load(tmp_path / "run" / "checkpoint" / "state.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["module"].values() if v.is_floating_point() and v.dim() > 1)
