"""Runs to a budget or to several: it is met, whatever the penalty does, and killed runs end the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from modules.training import tiny
from safetensors.torch import load_file
from training_bars import RESULTS, Stop, StopAt, assert_same_run, config, summary

from prunec import apply_plan
from prunec.errors import BudgetNotMet
from prunec.files import read_lines
from prunec.ir.plan import PrunePlan
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import resume_config


def test_a_budget_is_met_without_naming_rho(tmp_path: Path, bars: Path) -> None:
    result = train_prune(config(tmp_path / "run", bars, rho=None, target_params=0.6, steps=300))
    share = result.after["params"] / result.before["params"]
    assert 0.6 * 0.96 <= share <= 0.6, "a channel of this network is a twentieth of it"
    assert any(reason.startswith("budget: ") for reason in result.reasons)


def test_a_budget_is_met_even_where_the_penalty_does_nothing(tmp_path: Path, bars: Path) -> None:
    result = train_prune(config(tmp_path / "run", bars, rho=1e-9, target_macs=0.5, steps=8))
    assert result.after["macs"] <= 0.5 * result.before["macs"]
    (said,) = (reason for reason in result.reasons if reason.startswith("budget: "))
    assert re.search(r"of (\d+) channel classes that go, \1 had not reached zero", said)


def test_a_budget_that_overshoots_gives_back_what_went_last(tmp_path: Path, bars: Path) -> None:
    result = train_prune(config(tmp_path / "run", bars, rho=0.5, rho_warmup=0.0, target_macs=0.8, steps=120))
    assert 0.8 * 0.9 <= result.after["macs"] / result.before["macs"] <= 0.8
    (said,) = (reason for reason in result.reasons if reason.startswith("budget: "))
    assert int(re.search(r"and (\d+) that had stay", said)[1]) > 0  # type: ignore[index]


def test_a_budget_below_what_is_pinned_is_refused_before_training(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(BudgetNotMet, match=r"at the least .* of the MACs .* must stay") as error:
        train_prune(config(tmp_path / "run", bars, target_macs=0.2, keep=("*outer*", "*stem*")))
    assert error.value.exit_status == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [33, 70])
def test_a_run_under_a_budget_that_is_killed_ends_the_same(tmp_path: Path, bars: Path, step: int) -> None:
    given = {"rho": None, "target_macs": 0.6}
    train_prune(config(tmp_path / "whole", bars, **given))
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, **given), StopAt(step))
    train_prune(resume_config(str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


MILESTONES: dict[str, Any] = {"rho": None, "milestones": (0.8, 0.6), "steps": 160, "shares": (0.2, 0.5, 0.3)}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    folder = tmp_path_factory.mktemp("several") / "run"
    train_prune(config(folder, bars, **MILESTONES))
    return folder


def test_each_milestone_has_a_folder_with_a_network_of_its_size(several: Path) -> None:
    whole = summary(several)["before"]["macs"]
    for name, share in (("milestone-80", 0.8), ("milestone-60", 0.6)):
        assert {path.name for path in (several / name).iterdir()} == RESULTS
        found = summary(several / name)
        assert share * 0.9 <= found["after"]["macs"] / whole <= share
        assert found["validation"]["passed"]
        assert found["accuracy"]["after"] > 0.6
        pruned = apply_plan(tiny()[0], PrunePlan.load(several / name / "plan.json"), keep_class=True)
        pruned.load_state_dict(load_file(several / name / "pruned.safetensors"))


def test_the_run_folder_has_one_table_one_plot_and_the_last_network(several: Path) -> None:
    found = summary(several)
    assert [item["target"] for item in found["milestones"]] == [0.8, 0.6]
    assert [item["macs"] for item in found["milestones"]] == [
        summary(several / name)["after"]["macs"] for name in ("milestone-80", "milestone-60")
    ]
    assert {path.name for path in several.iterdir()} == {*RESULTS, "checkpoint", "milestone-80", "milestone-60"}
    for name in ("pruned.onnx", "pruned.safetensors", "plan.json"):
        assert (several / name).read_bytes() == (several / "milestone-60" / name).read_bytes()
    page = (several / "report.html").read_text()
    assert page.count("accuracy against MACs") == 2, "the plot and its label"
    assert "milestone-80" in page


def test_ista_goes_on_from_the_network_that_was_not_fine_tuned(several: Path) -> None:
    rows = read_lines(several / "metrics.jsonl")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    phases = [row["phase"] for row in rows]
    assert [b for a, b in zip(["", *phases], phases, strict=False) if a != b] == [
        "warmup", "ista", "finetune", "ista", "finetune",
    ]  # fmt: skip
    sparse = [row for row in rows if row["phase"] == "ista"]
    second = next(index for index in range(1, len(sparse)) if sparse[index]["step"] > sparse[index - 1]["step"] + 20)
    assert sparse[second]["macs_if_pruned"] <= 1.1 * sparse[second - 1]["macs_if_pruned"]


@pytest.mark.parametrize("step", [45, 70, 95])
def test_a_run_with_milestones_that_is_killed_ends_the_same(
    tmp_path: Path, bars: Path, several: Path, step: int
) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, **MILESTONES), StopAt(step))
    train_prune(resume_config(str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", several, "milestone-80/pruned.safetensors")
