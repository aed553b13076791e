"""Channels that leave while training goes on: the function stays, and so do the steps of what is left."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from modules.training import tiny
from safetensors.torch import load_file, save_file
from torch import nn
from training_bars import Stop, StopAt, config

from prunec import apply_plan
from prunec.files import read_lines
from prunec.ir.plan import PrunePlan
from prunec.passes.lowering.lower import sliced
from prunec.training.budget.landing import GammaHistory
from prunec.training.learning.ema import Ema
from prunec.training.learning.ranks import Alone
from prunec.training.run.run import train_prune
from prunec.training.run.shrinking import Live, due, shrink
from prunec.training.settings.presets import resume_config
from prunec.training.settings.removal import base_optimizer
from prunec.training.settings.setup import Setup, prepare
from prunec.training.sparsity.sparsify import build, gamma_values, named_parameters

SETTINGS: dict[str, Any] = {"shrink_after": 6, "rho": 0.05, "stop_on_plateau": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_prune(config(folder, bars, **SETTINGS))
    return folder


def summary(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return document


# --- one shrinking ------------------------------------------------------------------------------------


def warmed_up(tmp_path: Path, bars: Path, optimizer: str) -> Live:
    """Return the tiny network after a few steps, a third of its penalised gammas then set to zero."""
    settings = {"border": "exact", "optimizer": optimizer, "model": "modules.training:tiny"}
    setup = prepare(config(tmp_path / "run", bars, **SETTINGS, **settings), Alone())
    module = setup.module
    module.get_submodule("dropout").p = 0.0  # its mask is drawn for as many channels as there are
    ista = build(setup.sparsity, module, base_optimizer(module, setup.config, setup.config.lr), rho=0.0)
    ema = Ema(module, 0.9)
    for number in range(8):
        step(setup, module, ista, number)
        ema.update()
    history = GammaHistory(setup.sparsity)
    history.observe(gamma_values(setup.sparsity, module))
    parameters = named_parameters(module)
    with torch.no_grad():
        for gamma in setup.sparsity.gammas:
            mine = gamma.classes % 3 == 0
            parameters[gamma.param][torch.from_numpy(mine & setup.sparsity.channels_of(gamma))] = 0.0
    history.observe(gamma_values(setup.sparsity, module))
    return Live(setup, ista, ema, history)


def step(setup: Setup, module: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs, targets = setup.batches.at(number)
    optimizer.zero_grad()
    setup.objective.loss(setup.objective.logits(module(inputs)), targets).backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_smaller_network_computes_the_same_and_makes_the_same_step(
    tmp_path: Path, bars: Path, optimizer: str
) -> None:
    live = warmed_up(tmp_path, bars, optimizer)
    setup, large, ista = live.setup, live.setup.module, live.ista
    before = copy.deepcopy(large)
    gone = live.history.zero_for(1)
    assert gone.any()
    smaller, entry, said = shrink(live, gone, 8)
    assert entry is not None
    assert "MACs" in said
    small = smaller.setup.module
    assert all(torch.equal(a, b) for a, b in zip(large.parameters(), before.parameters(), strict=True))
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in large.parameters())
    assert smaller.setup.sparsity.num_gammas < setup.sparsity.num_gammas
    inputs, _ = setup.batches.at(20)
    for mode in (False, True):
        large.train(mode)
        small.train(mode)
        torch.testing.assert_close(small(inputs), large(inputs), rtol=1e-4, atol=1e-5)
    step(setup, large, ista, 9)
    step(setup, small, smaller.ista, 9)
    assert_same_values(live, PrunePlan.from_json(entry["plan"]), small)


def assert_same_values(live: Live, plan: PrunePlan, small: nn.Module) -> None:
    """Check that each parameter of the small network is the large one's, cut as the plan cuts; folds apart."""
    graph, classes = live.setup.sparsity.graph, live.setup.sparsity.classes
    nodes = {node.name: node for node in graph.nodes}
    folded = {fold.target for fold in plan.folds} | {nodes[fold.node].inputs[1] for fold in plan.folds}
    values = {
        name: p.detach().numpy() for name, p in named_parameters(live.setup.module).items() if name in graph.params
    }
    compared = 0
    for name, value in sliced(graph, classes, plan, values).items():
        after = named_parameters(small).get(name)
        if after is not None and name not in folded:
            np.testing.assert_allclose(after.detach().numpy(), value, rtol=2e-3, atol=2e-5, err_msg=name)
            compared += 1
    assert compared >= 10


def test_the_average_the_history_and_lambda_are_those_of_the_channels_that_stayed(tmp_path: Path, bars: Path) -> None:
    live = warmed_up(tmp_path, bars, "sgd")
    smaller, entry, _ = shrink(live, live.history.zero_for(1), 8)
    assert entry is not None
    plan = PrunePlan.from_json(entry["plan"])
    averaged = apply_plan(live.ema.copied_to(copy.deepcopy(live.setup.module)), plan)
    with smaller.ema.swapped_in():
        for mine, wanted in zip(smaller.setup.module.parameters(), averaged.parameters(), strict=True):
            torch.testing.assert_close(mine, wanted)
    kept = {keep.param: list(keep.keep) for keep in plan.keeps if keep.axis == 0}
    before = {gamma.param: gamma for gamma in live.setup.sparsity.gammas}
    for gamma in smaller.setup.sparsity.gammas:
        was = before[gamma.param].classes[kept.get(gamma.param, slice(None))]
        mine = smaller.setup.sparsity.channels_of(gamma)
        assert (live.setup.sparsity.penalty[was][mine] == smaller.setup.sparsity.penalty[gamma.classes][mine]).all()
        assert (live.history.norms()[was][mine] == smaller.history.norms()[gamma.classes][mine]).all()


def test_nothing_leaves_before_it_was_zero_for_long_enough_or_for_little(tmp_path: Path, bars: Path) -> None:
    live = warmed_up(tmp_path, bars, "sgd")
    setup, history = live.setup, live.history
    zero = history.zero_for(1)
    assert due(setup, history, 6) is None  # seen once: 6 steps have not passed
    history.observe(gamma_values(setup.sparsity, setup.module))
    found = due(setup, history, 6)
    assert found is not None
    assert (found == zero).all()
    assert due(setup, history, 3) is None
    parameters = named_parameters(setup.module)
    with torch.no_grad():
        for gamma in setup.sparsity.gammas:
            parameters[gamma.param].fill_(1.0)
        parameters["right.1.weight"][0] = 0.0
    for _ in range(3):
        history.observe(gamma_values(setup.sparsity, setup.module))
    assert history.zero_for(2).sum() == 1
    assert due(setup, history, 6) is None  # one channel of a 1x1 convolution is hardly any MACs


# --- whole runs ---------------------------------------------------------------------------------------


def test_a_run_whose_network_shrinks_leaves_what_every_run_leaves(finished: Path) -> None:
    found = summary(finished)
    plan = PrunePlan.load(finished / "plan.json")
    whole, images = tiny()
    assert len(plan.earlier) >= 1
    assert found["before"]["params"] == sum(p.numel() for p in whole.parameters())
    assert found["after"]["params"] < 0.8 * found["before"]["params"]
    assert found["validation"]["passed"]
    assert [layer["before"] for layer in found["layers"]] == [8, 8, 8, 6, 4, 2]
    assert sum(layer["after"] for layer in found["layers"]) == found["after"]["channels"]
    assert any("have left" in reason for reason in found["reasons"])
    for pruned in (apply_plan(whole, plan), apply_plan(whole, plan, keep_class=True)):
        pruned.load_state_dict(load_file(finished / "pruned.safetensors"))
        session = onnxruntime.InferenceSession(finished / "pruned.onnx", providers=["CPUExecutionProvider"])
        images = torch.randn(5, 3, 8, 8)
        (theirs,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(pruned.eval()(images).numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_sparsity_and_size_count_what_has_left(finished: Path) -> None:
    rows = [row for row in read_lines(finished / "metrics.jsonl") if row["phase"] == "ista"]
    assert all(after["sparsity"] >= before["sparsity"] - 0.1 for before, after in pairwise(rows))
    assert all(sum(row["gamma_histogram"]["counts"]) == 8 * 3 + 6 + 4 for row in rows)
    assert rows[-1]["params_if_pruned"] < rows[0]["params_if_pruned"]
    assert summary(finished)["after"]["params"] == pytest.approx(rows[-1]["params_if_pruned"], rel=0.05)


@pytest.mark.parametrize("at", [33, 48, 57, 75, 100])
def test_a_run_killed_before_or_after_channels_have_left_ends_the_same(
    tmp_path: Path, bars: Path, finished: Path, at: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars, **SETTINGS), StopAt(at))
    train_prune(resume_config(str(folder)))
    for name in ("pruned.safetensors", "metrics.jsonl", "plan.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize(
    "given",
    [
        {"target_macs": 0.25, "rho": 0.01, "shrink_after": 1, "log_every": 1, "steps": 200},
        {"milestones": (0.5, 0.2), "rho": 0.02, "steps": 240, "shrink_after": 1, "log_every": 2},
        {"optimizer": "adamw", "lr": 1e-3, "gamma_lr": 0.3},
        {"border": "exact", "drive_beta": True, "rho": 0.03},
        {"multiple_of": 2},
        {"distill": 0.3},
    ],
    ids=lambda given: next(iter(given)),
)
def test_shrinking_goes_together_with(tmp_path: Path, bars: Path, given: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    result = train_prune(config(folder, bars, **{**SETTINGS, **given}))
    assert any("have left" in reason for reason in result.reasons), result.reasons
    assert result.validation.passed
    assert result.after["macs"] < result.before["macs"]
    if "milestones" in given:
        assert [entry["macs"] / result.before["macs"] <= entry["target"] for entry in result.milestones] == [True] * 2
    if "target_macs" in given:
        assert result.after["macs"] <= 0.25 * result.before["macs"]


def test_a_rescaled_network_shrinks_and_its_scale_is_undone(tmp_path: Path, bars: Path) -> None:
    torch.manual_seed(0)
    module, _ = tiny()
    weights = tmp_path / "weights.safetensors"
    save_file(module.state_dict(), weights)
    settings = {**SETTINGS, "weights": str(weights), "alpha": 0.5, "gamma_lr": 0.1, "rho": 0.03}
    result = train_prune(config(tmp_path / "run", bars, **settings))
    assert any("have left" in reason for reason in result.reasons), result.reasons
    assert result.validation.passed
    pruned = load_file(tmp_path / "run" / "pruned.safetensors")
    gammas = torch.cat([v for name, v in pruned.items() if name.endswith("1.weight") and v.dim() == 1])
    assert float(gammas.abs().max()) > 0.3
