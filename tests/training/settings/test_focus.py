"""The penalty's focus: from weights to a budget, only the channels that the budget takes are driven to zero."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modules.training import Chain, tiny
from safetensors.torch import save_file
from training_bars import Stop, StopAt, assert_same_run, from_weights

from prunec.passes.channels import channels
from prunec.pipeline.reading import read_module
from prunec.training.run.results import RunResult
from prunec.training.run.run import train_prune
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import make_config, resume_config
from prunec.training.settings.tuning import gamma_summary
from prunec.training.sparsity.sparsify import Sparsity, build, gamma_values, plan_sparsity


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module, _ = tiny()
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(module.state_dict(), path)
    return path


def config(output: Path, bars: Path, weights: Path, **given: Any) -> RunConfig:
    """Return the settings of a run from weights to half of the MACs, with most of its steps for ISTA."""
    settings = {"steps": 100, "shares": (0.0, 0.6, 0.4), "criterion": "l1", **given}
    return from_weights(output, bars, weights, **settings)


# --- when ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ({}, True),
        ({"target_macs": None, "target_params": 0.5}, True),
        ({"target_macs": None, "milestones": (0.7, 0.5)}, True),
        ({"target_macs": None, "target_latency": 0.5}, True),
        ({"optimizer": "adamw"}, True),
        ({"target_macs": None}, False),
        ({"rho": 0.01}, False),
        ({"alpha": 0.1}, False),
        ({"gamma_lr": 0.01}, False),
    ],
)
def test_it_is_for_runs_from_weights_to_a_budget_for_which_nothing_was_chosen(
    tmp_path: Path, bars: Path, weights: Path, given: dict[str, Any], there: bool
) -> None:
    assert config(tmp_path / "run", bars, weights, **given).focuses is there


def test_a_run_from_scratch_has_none(tmp_path: Path, bars: Path) -> None:
    settings = {"model": "modules.training:tiny", "data": str(bars), "target_macs": 0.5}
    assert not make_config(str(tmp_path / "run"), **settings).focuses


# --- the penalty --------------------------------------------------------------------------------------


def chain() -> tuple[Chain, Sparsity]:
    torch.manual_seed(0)
    module = Chain()
    graph = read_module(module, (torch.zeros(2, 3, 8, 8),)).graph
    return module, plan_sparsity(graph, channels(graph), module)


def on(plan: Sparsity, param: str, channel: int) -> Sparsity:
    """Return ``plan`` with the penalty on one channel of one gamma."""
    mask = np.zeros_like(plan.penalised)
    (owner,) = [gamma.classes[channel] for gamma in plan.gammas if gamma.param == param]
    mask[owner] = True
    return replace(plan, focus=mask)


def test_proximal_steps_are_made_on_the_focus_alone() -> None:
    module, plan = chain()
    plan = on(plan, "first.1.weight", 2)
    optimizer = build(plan, module, torch.optim.SGD(module.parameters(), lr=0.1), rho=0.01, lr=0.5)
    before = gamma_values(plan, module)
    before = {name: value.copy() for name, value in before.items()}
    optimizer.zero_grad()
    optimizer.step()
    after = gamma_values(plan, module)
    moved = {name: np.flatnonzero(after[name] != before[name]).tolist() for name in before}
    assert moved == {"first.1.weight": [2], "second.1.weight": []}
    (owner,) = np.flatnonzero(plan.focus)
    assert after["first.1.weight"][2] == pytest.approx(1 - 0.5 * 0.01 * plan.penalty[owner])


def test_rho_is_chosen_for_the_gammas_in_the_focus() -> None:
    module, plan = chain()
    with torch.no_grad():
        module.second[1].weight.fill_(3.0)  # type: ignore[operator]
    plan = on(plan, "second.1.weight", 1)
    (owner,) = np.flatnonzero(plan.focus)
    assert gamma_summary(plan, gamma_values(plan, module)).reach == pytest.approx(3 / plan.penalty[owner])


# --- runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bars: Path, weights: Path) -> RunResult:
    return train_prune(config(tmp_path_factory.mktemp("finished") / "run", bars, weights))


def test_the_channels_that_the_budget_takes_reach_zero(finished: RunResult) -> None:
    assert finished.after["macs"] <= 0.5 * finished.before["macs"]
    assert finished.validation.passed
    reasons = "\n".join(finished.reasons)
    assert "channel classes that would go if the network were pruned to its budget now" in reasons
    assert "half of the gammas that it is on then reach zero within about 30 of the 60 steps" in reasons
    went, forced = re.search(r"of (\d+) channel classes that go, (\d+) had not reached zero", reasons).groups()  # type: ignore[union-attr]
    assert int(forced) <= 0.2 * int(went)


@pytest.mark.parametrize("step", [0, 25, 70])
def test_a_killed_run_goes_on_with_its_focus(
    tmp_path: Path, bars: Path, weights: Path, finished: RunResult, step: int
) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, weights), StopAt(step))
    train_prune(resume_config(str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", Path(finished.output))


def test_each_milestone_has_a_focus_of_its_own(tmp_path: Path, bars: Path, weights: Path) -> None:
    given = {"target_macs": None, "milestones": (0.7, 0.45)}
    whole = train_prune(config(tmp_path / "whole", bars, weights, **given))
    assert sum(reason.startswith("the penalty is on") for reason in whole.reasons) == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "killed", bars, weights, **given), StopAt(int(0.65 * steps[-1])))
    train_prune(resume_config(str(tmp_path / "killed")))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
