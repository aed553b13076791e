"""An average of sparse weights is told from weights that were never sparse, and from sparse ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prunec.api import analyze_module, prune_module


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in ((3, 16), (16, 16)):
        layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        nn.init.uniform_(layers[-2].weight, 0.3, 1.2)  # type: ignore[arg-type]
    return nn.Sequential(*layers, nn.Conv2d(16, 4, 1)).eval()


def averaged(net: nn.Sequential, steps: int) -> nn.Sequential:
    """Return the average over training in which some gammas became zero ``steps`` steps ago."""
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    average.update_parameters(net)
    sparse = copy.deepcopy(net)
    for norm in (sparse[1], sparse[4]):
        norm.weight.data[:6] = 0  # type: ignore[index,union-attr]
    for _ in range(steps):
        average.update_parameters(sparse)
    return average.module.eval()  # type: ignore[no-any-return]


def notes(net: nn.Module) -> list[str]:
    found = analyze_module(net, (torch.randn(1, 3, 8, 8),)).notes
    return [note for note in found if "gammas are under a fiftieth" in note]


@pytest.mark.parametrize("steps", [450, 700, 1200])
def test_an_average_without_zeros_is_told(steps: int) -> None:
    (note,) = notes(averaged(network(), steps))
    assert note.startswith("12 of 32 gammas")
    assert "docs/faq.md" in note


@pytest.mark.parametrize("steps", [0, 50, 3000])
def test_dense_weights_and_true_zeros_say_nothing(steps: int) -> None:
    """After 3000 steps what is left counts as zero, and goes."""
    assert notes(averaged(network(), steps)) == []


def test_reports_of_pruning_say_it_too() -> None:
    report = prune_module(averaged(network(), 700), (torch.randn(1, 3, 8, 8),)).report
    assert report.removed_channels == 0
    assert any("gammas are under a fiftieth" in note for note in report.notes)


@pytest.mark.parametrize("dead", [False, True])
def test_an_output_that_is_the_same_for_all_inputs_is_told(dead: bool) -> None:
    """What is left of a network whose penalty was too strong is small, exact, and of no use."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    with torch.no_grad():
        net[1].weight[0 if dead else 1 :] = 0
    for found in (prune_module(net, torch.zeros(1, 3, 8, 8)).report, analyze_module(net, torch.zeros(1, 3, 8, 8))):
        assert any("does not depend on the input" in note for note in found.notes) == dead
