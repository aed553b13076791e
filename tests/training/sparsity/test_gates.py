"""Channels behind a squeeze-excite gate: they go only with a constant of zero, so training brings their betas there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_same_function
from modules.gated import gated
from torch import nn
from torch.nn import functional as F
from training_bars import config

from prunec.api import prune_module
from prunec.errors import PrunecError
from prunec.passes.channels import channels
from prunec.pipeline.reading import read_module
from prunec.training import sparsify
from prunec.training.run.run import train_prune
from prunec.training.sparsity.betas import BetaDrive, Driven
from prunec.training.sparsity.sparsify import plan_sparsity

NETWORK = {"model": "modules.gated:gated", "input_shape": (3, 8, 8)}


def test_only_classes_behind_the_gate_need_a_constant_of_zero() -> None:
    module = gated()
    graph = read_module(module, (torch.zeros(2, 3, 8, 8),)).graph
    plan = plan_sparsity(graph, channels(graph), module)
    by_name = {gamma.param: gamma for gamma in plan.gammas}
    assert by_name["depthwise_norm.weight"].gated.all()
    assert plan.driven[by_name["depthwise_norm.weight"].classes].all()
    assert not by_name["project_norm.weight"].gated.any()
    assert not plan.driven[by_name["project_norm.weight"].classes].any()
    assert plan_sparsity(graph, channels(graph), module, drive_all=True).driven.sum() == plan.penalised.sum()


def test_only_betas_with_a_penalty_are_held_and_shrunk() -> None:
    gamma, beta = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.full((3,), 0.5))
    with torch.no_grad():
        gamma[2] = 1.0
    drive = BetaDrive([Driven(gamma, beta, torch.tensor([0.0, 2.0, 2.0]))])
    drive.hold()
    with torch.no_grad():
        beta.fill_(0.7)  # the optimiser's step
    drive.step(0.1)
    assert beta.tolist() == pytest.approx([0.7, 0.3, 0.7])


def test_a_loop_of_ones_own_loses_channels_behind_the_gate_exactly() -> None:
    module, generator = gated(), torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 8, 8, generator=generator)
    targets = (images.mean((1, 2, 3)) > 0).long()
    base = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    ista = sparsify(module, (images[:2],), base, rho=0.2, penalty="uniform")
    for _ in range(150):
        ista.zero_grad()
        F.cross_entropy(module(images), targets).backward()
        ista.step()
    gone = module.depthwise_norm.weight == 0
    assert gone.any()
    assert bool((module.depthwise_norm.bias[gone] == 0).all())
    module.eval()
    pruned = prune_module(module, (images[:2],), border="exact")
    assert pruned.module.get_submodule("depthwise").weight.shape[0] == max(1, 24 - int(gone.sum()))
    assert_same_function(module, pruned.module, images)


def test_a_run_loses_channels_behind_the_gate_without_an_option(tmp_path: Path, bars: Path) -> None:
    given = {"rho": 0.05, "shares": (0.1, 0.9, 0.0), "border": "exact"}
    results = train_prune(config(tmp_path / "run", bars, **NETWORK, **given))
    after = {layer["node"]: layer["after"] for layer in results.layers}
    assert after["depthwise"] < 24


def test_a_budget_counts_on_betas_that_follow(tmp_path: Path, bars: Path) -> None:
    given = {"rho": None, "target_params": 0.6, "shares": (0.1, 0.6, 0.3)}
    results = train_prune(config(tmp_path / "run", bars, **NETWORK, **given))
    left = results.after["params"] / results.before["params"]
    assert 0.5 < left <= 0.6
    assert np.isfinite(left)


def test_a_lazy_network_that_never_ran_is_refused_with_what_to_do(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(PrunecError, match="run the network once"):
        train_prune(config(tmp_path / "run", bars, **{**NETWORK, "model": "modules.gated:lazy"}))


def test_a_state_with_settings_beside_its_tensors_is_no_obstacle(tmp_path: Path, bars: Path) -> None:
    given = {**NETWORK, "model": "modules.gated:remembering", "shares": (0.1, 0.9, 0.0), "steps": 6}
    assert "pruned.safetensors" in train_prune(config(tmp_path / "run", bars, **given)).files
