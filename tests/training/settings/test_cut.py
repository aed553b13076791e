"""From weights to a budget channels go at once, and the unpruned network teaches what is left; here by ``l1``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from modules.training import tiny
from safetensors.torch import load_file, save_file
from torch import nn
from training_bars import Stop, StopAt, assert_same_run, from_weights
from training_bars import config as from_scratch

from prunec.errors import BadInput
from prunec.files import read_lines
from prunec.ir.plan import PrunePlan
from prunec.training.learning.distill import WEIGHT, Teacher, default_weight, distillation_loss
from prunec.training.learning.objective import Classification, Segmentation
from prunec.training.run.results import RunResult
from prunec.training.run.run import train_prune
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import resume_config
from prunec.training.settings.removal import LONG, criterion_of


def config(output: Path, bars: Path, weights: Path, **given: Any) -> RunConfig:
    settings = {"augment": "shift", "ema_decay": 0.9, "criterion": "l1"}
    return from_weights(output, bars, weights, **{**settings, **given})


# --- how steps are shared out -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ({}, (0.0, 0.0, 1.0)),
        ({"target_macs": None, "target_params": 0.4}, (0.0, 0.0, 1.0)),
        ({"target_macs": None, "milestones": (0.7, 0.5)}, (0.0, 0.0, 1.0)),
        ({"target_macs": None, "target_latency": 0.6}, (0.0, 0.0, 1.0)),
        ({"shares": (0.0, 0.2, 0.8)}, (0.0, 0.2, 0.8)),
        ({"rho": 0.01}, (0.0, 0.6, 0.4)),
        ({"gamma_lr": 0.1}, (0.0, 0.6, 0.4)),
        ({"target_macs": None}, (0.0, 0.6, 0.4)),
    ],
)
def test_from_weights_to_a_budget_all_steps_are_fine_tunings_unless_something_was_chosen(
    tmp_path: Path, bars: Path, trained: Path, given: dict[str, Any], shares: tuple[float, ...]
) -> None:
    assert config(tmp_path / "run", bars, trained, **given).shares == shares


@pytest.mark.parametrize("steps", [0, 1_999, 2_000])
@pytest.mark.parametrize(
    ("given", "criterion"),
    [
        ({"target_macs": 0.49}, "reconstruct"),
        ({"target_macs": 0.5}, "long"),
        ({"target_macs": 0.5, "criterion": "reconstruct"}, "reconstruct"),
        ({"target_macs": 0.3, "criterion": "l1"}, "l1"),
        ({"target_macs": 0.6, "target_params": 0.4}, "reconstruct"),
        ({"target_macs": None, "target_params": 0.8}, "reconstruct"),
        ({"target_macs": None, "milestones": (0.7, 0.5)}, "reconstruct"),
        ({"target_macs": 0.4, "shares": (0.0, 0.2, 0.8)}, "reconstruct"),
        ({"target_macs": None, "target_latency": 0.6}, "l1"),
        ({"rho": 0.01}, "l1"),
        ({"target_macs": None}, "l1"),
    ],
)
def test_what_goes_is_chosen_by_data_unless_a_clock_has_to_be_watched(
    tmp_path: Path, bars: Path, trained: Path, given: dict[str, Any], criterion: str, steps: int
) -> None:
    """``long``: by l1 if a mild budget is followed by long fine-tuning."""
    found = config(tmp_path / "run", bars, trained, **{"criterion": None, **given})
    wanted = criterion if criterion != "long" else "l1" if steps >= LONG else "reconstruct"
    assert criterion_of(found, steps) == wanted


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({"batch_size": 125}, 0.02),
        ({"batch_size": 500}, 0.02),
        ({"batch_size": 50}, 0.008),
        ({"batch_size": 25, "accumulate": 2}, 0.008),
        ({"batch_size": 50, "finetune_lr": 0.03}, 0.03),
        ({"batch_size": 50, "rho": 0.01}, 0.02),
        ({"batch_size": 50, "target_macs": None}, 0.02),
        ({"batch_size": 50, "optimizer": "adamw"}, 0.001),
    ],
)
def test_small_batches_are_fine_tuned_at_a_rate_in_proportion(
    tmp_path: Path, bars: Path, trained: Path, given: dict[str, Any], rate: float
) -> None:
    assert config(tmp_path / "run", bars, trained, **given).finetune_lr == rate


@pytest.mark.parametrize("batch_size", [0, -5])
def test_a_batch_of_no_images_is_still_refused(tmp_path: Path, bars: Path, trained: Path, batch_size: int) -> None:
    with pytest.raises(BadInput, match="batch-size is"):
        config(tmp_path / "run", bars, trained, batch_size=batch_size)


@pytest.mark.parametrize("given", [{"rho": 0.01}, {"target_macs": None}, {"alpha": 0.5}])
def test_only_such_a_run_may_do_without_ista(tmp_path: Path, bars: Path, trained: Path, given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="ISTA's is not 0"):
        config(tmp_path / "run", bars, trained, shares=(0.0, 0.0, 1.0), **given)


def test_a_run_of_no_steps_but_warm_up_is_refused(tmp_path: Path, bars: Path, trained: Path) -> None:
    with pytest.raises(BadInput, match="shares is"):
        config(tmp_path / "run", bars, trained, shares=(1.0, 0.0, 0.0))


# --- runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bars: Path, trained: Path) -> RunResult:
    return train_prune(config(tmp_path_factory.mktemp("finished") / "run", bars, trained))


def test_the_budget_is_met_at_once_and_every_step_is_fine_tunings(finished: RunResult) -> None:
    assert 0.4 * finished.before["macs"] <= finished.after["macs"] <= 0.5 * finished.before["macs"]
    assert finished.validation.passed
    assert finished.score["after"] >= 0.9
    rows = read_lines(Path(finished.output) / "metrics.jsonl")
    assert {row["phase"] for row in rows} == {"finetune"}
    assert rows[-1]["step"] == 60
    said = "\n".join(finished.reasons)
    assert "the channels with the smallest filters go at once" in said
    assert "fine-tuning also learns the unpruned network's answers" in said
    assert (Path(finished.output) / "report.html").stat().st_size > 1000


def test_the_smallest_filters_are_those_that_go(finished: RunResult, trained: Path) -> None:
    weights = load_file(trained)
    keeps = PrunePlan.load(Path(finished.output) / "plan.json").keeps
    inner = [keep for keep in keeps if keep.param == "inner.0.weight" and keep.axis == 0]
    assert inner, "the layer inside the residual block loses channels"
    sizes = weights["inner.0.weight"].abs().mean((1, 2, 3))
    kept = set(inner[0].keep)
    gone = [float(size) for index, size in enumerate(sizes) if index not in kept]
    assert max(gone) <= min(float(sizes[index]) for index in kept)


@pytest.mark.parametrize("step", [0, 25])
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, bars: Path, trained: Path, finished: RunResult, step: int
) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, trained), StopAt(step))
    train_prune(resume_config(str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", Path(finished.output))


def test_milestones_are_cut_from_the_given_network_one_by_one(tmp_path: Path, bars: Path, trained: Path) -> None:
    given: dict[str, Any] = {"target_macs": None, "milestones": (0.7, 0.4)}
    whole = train_prune(config(tmp_path / "whole", bars, trained, **given))
    for item, share in zip(whole.milestones, (0.7, 0.4), strict=True):
        assert 0.8 * share <= item["macs"] / whole.before["macs"] <= share
    alone = train_prune(config(tmp_path / "alone", bars, trained, target_macs=0.4, steps=30))
    assert alone.after == whole.after, "the second is cut from the whole network, not from the first"
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "killed", bars, trained, **given), StopAt(45))
    train_prune(resume_config(str(tmp_path / "killed")))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


# --- who teaches ------------------------------------------------------------------------------------


def test_the_teacher_changes_what_is_learnt_and_distill_0_leaves_it_out(
    tmp_path: Path, bars: Path, trained: Path, finished: RunResult
) -> None:
    train_prune(config(tmp_path / "given", bars, trained, distill=WEIGHT))
    assert (tmp_path / "given" / "pruned.safetensors").read_bytes() == (
        Path(finished.output) / "pruned.safetensors"
    ).read_bytes()
    without = train_prune(config(tmp_path / "without", bars, trained, distill=0.0))
    assert not any("teach" in reason or "answers" in reason for reason in without.reasons)
    theirs = [load_file(Path(each.output) / "pruned.safetensors") for each in (finished, without)]
    assert any(not torch.equal(theirs[0][name], theirs[1][name]) for name in theirs[0])


def test_a_network_that_does_not_know_the_data_does_not_teach(tmp_path: Path, bars: Path) -> None:
    torch.manual_seed(0)
    save_file(tiny()[0].state_dict(), tmp_path / "random.safetensors")
    told = train_prune(config(tmp_path / "run", bars, tmp_path / "random.safetensors")).reasons
    assert any(reason.startswith("the unpruned network does not teach: its loss") for reason in told)
    train_prune(config(tmp_path / "zero", bars, tmp_path / "random.safetensors", distill=0.0))
    one, other = (load_file(tmp_path / name / "pruned.safetensors") for name in ("run", "zero"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_from_scratch_nobody_teaches_unless_asked(tmp_path: Path, bars: Path) -> None:
    result = train_prune(from_scratch(tmp_path / "run", bars, steps=40))
    assert not (tmp_path / "run" / "checkpoint" / "teacher.pt").exists()
    assert not any("teach" in reason or "answers" in reason for reason in result.reasons)


def test_the_rule_compares_the_loss_with_that_of_guessing() -> None:
    objective = Classification(("a", "b"))
    inputs, targets = torch.eye(2).repeat(8, 1), torch.arange(2).repeat(8)

    class Sure(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return self.factor * given

    knows, guesses = Sure(5.0).train(), Sure(0.1).train()
    assert default_weight(knows, [(inputs, targets)], objective)[0] == WEIGHT
    assert default_weight(guesses, [(inputs, targets)], objective)[0] == 0
    assert knows.training


def test_a_network_that_makes_masks_does_not_teach_by_default() -> None:
    """A SegNet on nuclei lost four points of mIoU to its own teaching, pruned or not, and gained one without."""
    objective = Segmentation(("background", "foreground"), 1, (0.5, 0.5))
    targets = torch.arange(2, dtype=torch.uint8).repeat(2, 4, 4)
    logits = 8.0 * (2.0 * targets[:, None] - 1)
    assert objective.loss(logits, targets) < 0.1 * objective.chance_loss
    weight, why = default_weight(nn.Identity(), [(logits, targets)], objective)
    assert weight == 0
    assert "masks" in why


def test_the_loss_is_the_weighted_sum_of_labels_and_answers() -> None:
    objective = Classification(("a", "b", "c"))
    generator = torch.Generator().manual_seed(0)
    logits, answers = (torch.randn(5, 3, generator=generator) for _ in range(2))
    targets = torch.tensor([0, 1, 2, 0, 1])
    teacher = Teacher(lambda _: answers, 0.9, objective)
    wanted = 0.1 * objective.loss(logits, targets) + 0.9 * distillation_loss(logits, answers)
    torch.testing.assert_close(teacher.loss(torch.zeros(5), logits, targets), wanted)
