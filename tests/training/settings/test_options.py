"""Options of a run that change how it trains: optimisers, accumulation, distillation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_bars import Stop, StopAt, assert_same_run, config

from prunec.errors import BadInput
from prunec.files import read_lines
from prunec.ir.plan import PrunePlan
from prunec.training.learning.distill import TEMPERATURE, distillation_loss
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import resume_config
from prunec.training.sparsity.betas import BetaDrive, Driven


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "nesterov"},
        {"optimizer": "adamw", "lr": 0.003, "finetune_lr": 0.003},
        {"distill": 0.5},
        {"drive_beta": True},
    ],
    ids=["nesterov", "adamw", "distill", "drive-beta"],
)
def test_a_run_with_an_option_prunes_and_ends_the_same_when_it_is_killed(
    tmp_path: Path, bars: Path, given: dict[str, Any]
) -> None:
    result = train_prune(config(tmp_path / "whole", bars, **given))
    assert result.after["params"] < 0.9 * result.before["params"]
    assert result.score["after"] >= 0.8
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, **given), StopAt(100))
    train_prune(resume_config(str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_accumulated_batches_are_one_large_batch_where_there_is_no_batchnorm_in_training(
    tmp_path: Path, bars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without batch statistics and dropout the two must agree but for the order of sums.
    monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: _eval_only(self))
    given: dict[str, Any] = {"steps": 12, "rho": 0.0, "shares": (0.5, 0.5, 0.0), "checkpoint_every": 100}
    train_prune(config(tmp_path / "large", bars, batch_size=32, **given))
    train_prune(config(tmp_path / "small", bars, batch_size=8, accumulate=4, **given))
    large, small = (load_file(tmp_path / name / "pruned.safetensors") for name in ("large", "small"))
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-3, atol=1e-4, msg=name)
    losses = [[row["loss"] for row in read_lines(tmp_path / name / "metrics.jsonl")] for name in ("large", "small")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def _eval_only(module: nn.Module) -> nn.Module:
    for child in module.modules():
        child.training = False
    return module


def test_more_accumulated_images_than_there_are_is_refused(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(BadInput, match="8 batches of 16 are 128 images; there are 80"):
        train_prune(config(tmp_path / "run", bars, accumulate=8))
    assert not (tmp_path / "run").exists()


def test_betas_of_zero_gammas_reach_zero_and_the_others_stay() -> None:
    gamma, beta = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 1.0])), nn.Parameter(torch.tensor([0.5, 0.5, -0.3, -0.3]))
    drive = BetaDrive([Driven(gamma, beta, torch.tensor([2.0, 2.0, 2.0, 0.0]))])

    def step(threshold: float) -> None:
        drive.hold()
        with torch.no_grad():
            beta.add_(0.25)  # what an optimiser does
        drive.step(threshold)

    step(0.05)
    torch.testing.assert_close(beta.detach(), torch.tensor([0.75, 0.4, -0.2, -0.05]))
    for _ in range(10):
        step(0.05)
    assert beta.tolist()[1:3] == [0.0, 0.0]
    step(0.0)  # without a penalty they train as all others do
    assert beta.tolist()[1:3] == [0.25, 0.25]


def test_driven_betas_leave_less_to_fold(tmp_path: Path, bars: Path) -> None:
    sums = []
    for drive in (False, True):
        train_prune(config(tmp_path / str(drive), bars, drive_beta=drive, shares=(0.2, 0.8, 0.0)))
        plan = PrunePlan.load(tmp_path / str(drive) / "plan.json")
        assert not plan.is_empty
        constants = [abs(constant) for fold in plan.folds for constant in fold.constants]
        sums.append(sum(constants))
    assert sums[1] < 0.5 * sums[0]


def test_distillation_is_zero_where_both_say_the_same_and_kl_elsewhere() -> None:
    mine, wanted = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert float(distillation_loss(mine, mine)) == pytest.approx(0, abs=1e-7)
    odds = 1 / (1 + math.exp(-2 / TEMPERATURE))
    by_hand = TEMPERATURE**2 * sum(0.5 * math.log(0.5 / p) for p in (odds, 1 - odds))
    assert float(distillation_loss(mine, wanted)) == pytest.approx(by_hand, rel=1e-5)


def test_one_logit_per_pixel_distils_like_two() -> None:
    generator = torch.Generator().manual_seed(0)
    mine, wanted = (torch.randn(2, 1, 4, 4, generator=generator) for _ in range(2))
    both = [torch.cat((torch.zeros_like(x), x), dim=1) for x in (mine, wanted)]
    assert float(distillation_loss(mine, wanted)) == pytest.approx(float(distillation_loss(*both)), rel=1e-6)
    assert float(distillation_loss(mine, wanted)) > 0
