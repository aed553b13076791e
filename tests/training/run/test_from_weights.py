"""Runs that begin with weights: they are measured first, keep their scales, and gammas get a step size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from modules.training import tiny
from safetensors.torch import save_file
from training_bars import Stop, StopAt, assert_same_run, config, from_weights

from prunec.training.run.run import train_prune
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import resume_config


def test_pretrained_weights_are_measured_first_and_rescaled(tmp_path: Path, bars: Path) -> None:
    torch.manual_seed(0)
    module, _ = tiny()
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    given = {"weights": str(tmp_path / "weights.safetensors"), "rho": None, "shares": (0.0, 0.7, 0.3)}
    result = train_prune(config(tmp_path / "run", bars, alpha=0.1, **given))
    assert result.score["before"] < result.score["after"]
    assert any(re.match(r"rho [\d.]+: .*(loss of guessing|reaches zero)", reason) for reason in result.reasons)


def pretrained(folder: Path, bars: Path, **given: Any) -> RunConfig:
    """Return the settings of a run of the tiny network with weights, by the recipe for such."""
    torch.manual_seed(0)
    weights = folder.parent / "weights.safetensors"
    save_file(tiny()[0].state_dict(), weights)
    return from_weights(folder, bars, weights, **{"target_macs": None, **given})


def test_a_network_with_weights_keeps_its_scales_and_its_gammas_get_a_step_size(tmp_path: Path, bars: Path) -> None:
    chosen = train_prune(pretrained(tmp_path / "chosen", bars)).reasons
    assert any(reason.startswith("alpha 1: gammas have a step size of their own") for reason in chosen)
    # Both sentences are about the run as it begins, with the rho that it got.
    said = {reason.partition(" ")[0]: reason.partition(": ")[2] for reason in chosen}
    assert said["mu"].startswith("a gamma without use then reaches zero")
    assert said["mu"] == said["rho"]
    papers = train_prune(pretrained(tmp_path / "papers", bars, gamma_lr=0.01, rho=0.02)).reasons
    assert any(re.match(r"alpha (1|0.1): of 1, 0.1 the one", reason) for reason in papers)
    assert not any(reason.startswith("mu") for reason in papers)


def test_an_alpha_that_is_likely_to_wreck_a_trained_network_is_named(tmp_path: Path, bars: Path) -> None:
    small = train_prune(pretrained(tmp_path / "small", bars, alpha=0.01, gamma_lr=1e-4, rho=0.02)).reasons
    assert "alpha 0.01: given, but betas then learn as with a rate of 100 (lr/α²): lower lr, or raise alpha" in small
    assert "alpha 0.1: given" in train_prune(pretrained(tmp_path / "usual", bars, alpha=0.1, rho=0.02)).reasons


def test_a_chosen_step_size_is_kept_when_the_run_is_resumed(tmp_path: Path, bars: Path) -> None:
    train_prune(pretrained(tmp_path / "whole", bars, target_macs=0.7))
    with pytest.raises(Stop):
        train_prune(pretrained(tmp_path / "killed", bars, target_macs=0.7), StopAt(23))
    train_prune(resume_config(str(tmp_path / "killed")))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
