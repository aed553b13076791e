"""``--criterion reconstruct``: training images say which channels go, and the rest is fitted to make up for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from modules.training import Chain, Dense, Grouped, Inverted, ResidualConcat, tiny, trained_like
from safetensors.torch import load_file
from torch import nn
from training_bars import Stop, StopAt, assert_same_run, from_weights

from prunec import apply_plan, prune_module
from prunec.errors import BadInput, BudgetNotMet
from prunec.files import read_lines
from prunec.ir.plan import PrunePlan
from prunec.passes.channels import channels
from prunec.pipeline.reading import read_module
from prunec.training.budget.goals import Goal
from prunec.training.run.results import RunResult
from prunec.training.run.run import train_prune
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import resume_config
from prunec.training.settings.removal import enough_images, remove_by_data
from prunec.training.sparsity.sparsify import plan_sparsity


def config(output: Path, bars: Path, weights: Path, **given: Any) -> RunConfig:
    settings = {"steps": 40, "augment": "shift", "ema_decay": 0.9, "criterion": "reconstruct"}
    return from_weights(output, bars, weights, **{**settings, **given})


# --- the removal ------------------------------------------------------------------------------------


def _removed(module: nn.Module, images: torch.Tensor, **given: Any) -> Any:
    graph = read_module(module, (images[:2],)).graph
    residual = given.pop("residual", "group")
    plan = plan_sparsity(graph, channels(graph), module, residual=residual)
    goals = given.pop("goals", (Goal("macs", 0.6),))
    return remove_by_data(module, images, RunConfig("unused", model="none", **given), 10, goals, plan)


@pytest.mark.parametrize("network", [Chain, ResidualConcat, Dense, Inverted, Grouped])
def test_what_stays_makes_up_for_what_goes(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, images = trained_like(network()), torch.randn(200, 3, 8, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pruned = _removed(module, images)
    assert pruned.report.after.macs <= 0.6 * pruned.report.before.macs
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the given network has changed"
    alone = prune_module(
        module, (images[:2],), criterion="l1", target_macs=0.6, multiple_of=1, compensate=False, validate=False
    )
    with torch.no_grad():
        wanted = module(images)
        errors = [float((each.eval()(images) - wanted).norm()) for each in (pruned.module, alone.module)]
    assert errors[0] < 0.8 * errors[1]


def test_images_that_are_all_the_same_are_named_as_the_users_data() -> None:
    with pytest.raises(BadInput, match=r"the data in photos \(training images\) are constant") as error:
        _removed(trained_like(Chain()), torch.ones(40, 3, 8, 8), data="photos")
    assert "a few hundred" in error.value.do


def test_residual_streams_stay_where_they_are_to_be_kept() -> None:
    torch.manual_seed(0)
    module, images = trained_like(ResidualConcat()), torch.randn(100, 3, 8, 8)
    sliced = {(keep.param, keep.axis) for keep in _removed(module, images, residual="keep").plan.keeps}
    assert ("inner.0.weight", 0) in sliced
    assert not sliced & {("stem.0.weight", 0), ("stem.1.weight", 0), ("outer.0.weight", 0), ("left.0.weight", 1)}
    assert "stem.1.weight" in {keep.param for keep in _removed(module, images, goals=(Goal("macs", 0.3),)).plan.keeps}


def test_kept_patterns_and_round_counts_hold() -> None:
    torch.manual_seed(0)
    module, images = trained_like(ResidualConcat()), torch.randn(100, 3, 8, 8)
    kept = {}
    for keep in _removed(module, images, keep=("left*",), multiple_of=4).plan.keeps:
        kept[keep.param, keep.axis] = len(keep.keep)
    assert kept
    assert ("left.0.weight", 0) not in kept
    assert all(count % 4 == 0 for (name, axis), count in kept.items() if axis == 0 and name.endswith("1.weight"))


def test_frozen_gammas_keep_their_channels() -> None:
    torch.manual_seed(0)
    module, images = trained_like(ResidualConcat()), torch.randn(100, 3, 8, 8)
    assert isinstance(module, ResidualConcat)
    module.inner[1].weight.requires_grad_(False)
    assert "inner.1.weight" not in {keep.param for keep in _removed(module, images).plan.keeps}


@pytest.mark.parametrize(("shape", "count"), [((3, 8, 8), 1000), ((3, 224, 224), 334), ((1, 2048, 2048), 64)])
def test_large_images_are_fewer(shape: tuple[int, ...], count: int) -> None:
    assert enough_images(shape) == count


# --- runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bars: Path, trained: Path) -> RunResult:
    return train_prune(config(tmp_path_factory.mktemp("finished") / "run", bars, trained))


def test_the_budget_is_met_at_once_and_the_summary_says_how(finished: RunResult) -> None:
    assert 0.4 * finished.before["macs"] <= finished.after["macs"] <= 0.5 * finished.before["macs"]
    assert finished.validation.passed
    assert finished.score["after"] >= 0.9
    assert {row["phase"] for row in read_lines(Path(finished.output) / "metrics.jsonl")} == {"finetune"}
    said = "\n".join(finished.reasons)
    assert "the channels that the others make up for best go at once" in said
    assert "of the MACs (50.0% were asked for) are left; the channels to remove were chosen" in said
    assert "on 80 training images" in said


def test_plan_and_weights_give_the_network_again(finished: RunResult) -> None:
    folder = Path(finished.output)
    plan = PrunePlan.load(folder / "plan.json")
    assert not plan.refits, "training went on from the fitted weights: they are of no use any more"
    module = apply_plan(tiny()[0], plan)
    module.load_state_dict(load_file(folder / "pruned.safetensors"))
    images = torch.randn(4, 3, 8, 8)
    session = ort.InferenceSession(str(folder / "pruned.onnx"))
    (given,) = session.get_inputs()
    with torch.no_grad():
        found = torch.cat([torch.from_numpy(session.run(None, {given.name: one[None].numpy()})[0]) for one in images])
        torch.testing.assert_close(module.eval()(images), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [0, 25])
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, bars: Path, trained: Path, finished: RunResult, step: int
) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, trained), StopAt(step))
    train_prune(resume_config(str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", Path(finished.output))


@pytest.mark.parametrize(
    "given",
    [
        {"target_macs": None, "target_params": 0.4},
        {"target_params": 0.45},
        {"shares": (0.0, 0.2, 0.8)},
        {"shares": (0.0, 0.3, 0.7), "residual": "keep", "target_macs": 0.8},
        {"shares": (0.0, 0.5, 0.0), "target_macs": 0.6},
    ],
)
def test_other_budgets_are_met(tmp_path: Path, bars: Path, trained: Path, given: dict[str, Any]) -> None:
    result = train_prune(config(tmp_path / "run", bars, trained, **given))
    for goal in config(tmp_path / "other", bars, trained, **given).goals:
        left = result.after[goal.quantity] / result.before[goal.quantity]
        assert 0.7 * goal.share <= left <= goal.share or len(given) == 1
    assert result.validation.passed


def test_channels_that_have_faded_are_the_first_to_go(tmp_path: Path, bars: Path, trained: Path) -> None:
    """Where ISTA brings the network to its budget there is nothing to make up for, and nothing is fitted."""
    given: dict[str, Any] = {"steps": 120, "shares": (0.0, 0.7, 0.3), "target_macs": 0.8, "rho": 0.1, "gamma_lr": 0.5}
    found = [train_prune(config(tmp_path / name, bars, trained, criterion=name, **given)) for name in _CRITERIA]
    assert "is reached" in " ".join(found[0].reasons)
    assert found[0].after == found[1].after
    assert not any("fitted" in reason for each in found for reason in each.reasons)


_CRITERIA = ("l1", "reconstruct")


def test_milestones_are_cut_from_the_given_network_one_by_one(tmp_path: Path, bars: Path, trained: Path) -> None:
    given: dict[str, Any] = {"target_macs": None, "milestones": (0.7, 0.4)}
    whole = train_prune(config(tmp_path / "whole", bars, trained, **given))
    alone = train_prune(config(tmp_path / "alone", bars, trained, target_macs=0.4, steps=20))
    assert alone.after == whole.after, "the second is cut from the whole network, not from the first"
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "killed", bars, trained, **given), StopAt(25))
    train_prune(resume_config(str(tmp_path / "killed")))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_budget_that_cannot_be_met_is_refused(tmp_path: Path, bars: Path, trained: Path) -> None:
    with pytest.raises(BudgetNotMet, match="must stay"):
        train_prune(config(tmp_path / "run", bars, trained, target_macs=0.001))
    assert not (tmp_path / "run" / "pruned.onnx").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_macs": None, "shares": (0.0, 0.5, 0.5)}, "needs a budget of MACs or parameters"),
        ({"target_macs": None, "target_latency": 0.5}, "needs a budget of MACs or parameters"),
        ({"criterion": "taylor"}, "there is no criterion called 'taylor'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, bars: Path, trained: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        config(tmp_path / "run", bars, trained, **given)
