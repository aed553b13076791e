"""Depthwise convolutions that make several channels of each: a balance, not a tie, in both frontends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from assertions import assert_same_function
from onnx_models.masks import prune_at_random
from onnx_models.nets import num_removed, prune
from torch import Tensor, nn

from prunec.api import prune_module
from prunec.backends.onnx.save import model_bytes
from prunec.frontends.onnx.frontend import trace_onnx
from prunec.pipeline.export import export_onnx
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module

CHANNELS = 6
BATCH = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(zeros_in: Sequence[int], zeros_out: Sequence[int], transposed: bool, beta: float = 0.5) -> nn.Module:
    """Return convolution, depthwise convolution to twice as many channels, convolution; some gammas are zero."""
    torch.manual_seed(0)
    wide = 2 * CHANNELS
    if transposed:
        depthwise: nn.Module = nn.ConvTranspose2d(CHANNELS, wide, 2, stride=2, groups=CHANNELS)
    else:
        depthwise = nn.Conv2d(CHANNELS, wide, 3, padding=1, groups=CHANNELS)
    first, second = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(wide)
    with torch.no_grad():
        for norm, zeros in ((first, zeros_in), (second, zeros_out)):
            norm.bias.uniform_(-beta, beta)
            norm.weight[list(zeros)] = 0
        first.bias[list(zeros_in)] = 0
    layers = [nn.Conv2d(3, CHANNELS, 3, padding=1), first, nn.ReLU(), depthwise, second, nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(wide, 4, 3, padding=1)).double().eval()


GONE = {
    "all-but-one-group": ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    "whole-groups": ([1, 2], [2, 3, 4, 5, 6, 8, 10]),
    "every-input": (range(CHANNELS), [0, 3]),
    "some-of-each": ([0, 3], [0, 1, 2, 6, 7, 9]),
}


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("name", GONE)
def test_pruning_twice_changes_nothing_more(name: str, transposed: bool) -> None:
    net = network(*GONE[name], transposed)
    once = prune_module(net, (BATCH,), validate=False)
    assert once.report.removed_channels > 0
    assert_same_function(net, once.module, BATCH, tolerance=1e-9)
    twice = prune_module(once.module, (BATCH,), validate=False)
    assert twice.report.removed_channels == 0


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_one_output_of_every_group_goes(transposed: bool) -> None:
    """No whole group is silent, but each has one output that is zero: any one of the two."""
    net = network([], [0, 3, 4, 7, 8, 11], transposed, beta=0.0)
    result = prune_module(net, (BATCH,), validate=False)
    assert_same_function(net, result.module, BATCH, tolerance=1e-9)
    assert result.report.removed_channels == CHANNELS
    convs = [m for m in result.module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(c.groups, c.out_channels) for c in convs] == [(1, CHANNELS), (CHANNELS, CHANNELS), (1, 4)]


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_files_are_pruned_like_modules(transposed: bool, tmp_path: Path) -> None:
    net = network([1, 2], [2, 3, 4, 5, 6, 8, 10], transposed).float()
    path = tmp_path / "net.onnx"
    export_onnx(net, (BATCH.float(),), path)
    model = onnx.load(path)
    _, made, source = prune(model)
    assert num_removed(made) > 0
    _, again, _ = prune(onnx.load_from_string(model_bytes(source)))
    assert num_removed(again) == 0
    prune_at_random(model, 3)


def test_both_frontends_find_the_same_balance(tmp_path: Path) -> None:
    net, x = network([], [], False).float(), BATCH.float()
    export_onnx(net, (x,), tmp_path / "net.onnx")
    found = []
    for graph in (read_module(net, (x,)).graph, trace_onnx(onnx.load(tmp_path / "net.onnx")).graph):
        classes = gather_facts(graph).classes
        assert [balance.out_ids.shape for balance in classes.balances] == [(CHANNELS, 2)]
        found.append(int((classes.is_channel & ~classes.pinned).sum()))
    assert found == [3 * CHANNELS] * 2


def test_half_of_the_macs_goes_by_score() -> None:
    net = network([], [], False)
    result = prune_module(net, (BATCH,), criterion="l1", target_macs=0.5)
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    output = result.module(BATCH)
    assert isinstance(output, Tensor)
    assert output.shape == net(BATCH).shape
