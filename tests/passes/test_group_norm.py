"""GroupNorm averages over the channels of a group: whole groups can go, parts of one stay."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from assertions import assert_same_function
from onnx_models.masks import prune_at_random
from onnx_models.nets import Net, assert_pruned_agrees
from torch import nn

from prunec.api import prune_module
from prunec.frontends.onnx.frontend import trace_onnx
from prunec.pipeline.planning import gather_facts

CHANNELS, GROUPS, WHOLE, PART = 12, 4, (1, 3), 2
"""Groups 1 and 3 are constant; of group 2 one channel is."""


def constant_channels() -> list[int]:
    size = CHANNELS // GROUPS
    return [*(group * size + place for group in WHOLE for place in range(size)), PART * size]


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1), nn.GroupNorm(GROUPS, CHANNELS), nn.Sigmoid(), nn.Conv2d(CHANNELS, 5, 1)
    )
    norm = net[1]
    assert isinstance(norm, nn.GroupNorm)
    norm.weight.data.uniform_(0.5, 1.5)
    norm.bias.data.normal_()
    norm.weight.data[constant_channels()] = 0
    return net.eval()


def test_a_module_loses_whole_constant_groups() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,), validate=False)
    assert {(keep.size, len(keep.keep)) for keep in result.plan.keeps} == {(CHANNELS, CHANNELS // 2)}
    norm = next(part for part in result.module.modules() if isinstance(part, nn.GroupNorm))
    assert (norm.num_groups, norm.num_channels) == (2, CHANNELS // 2)
    assert_same_function(net, result.module, x, torch.randn(1, 3, 5, 9))


def test_a_module_loses_whole_groups_by_score() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    net[1].weight.data.fill_(1.0)  # type: ignore[union-attr]  # a GroupNorm
    result = prune_module(net, (x,), criterion="l1", target_macs=0.5)
    kept = next(keep.keep for keep in result.plan.keeps if keep.param == "3.weight")
    masked = copy.deepcopy(net)
    masked[3].weight.data[:, [c for c in range(CHANNELS) if c not in kept]] = 0  # type: ignore[union-attr]  # a Conv2d
    assert_same_function(masked, result.module, x)


@pytest.mark.parametrize("groups", [1, CHANNELS])
def test_one_group_stays_and_groups_of_one_are_channels(groups: int) -> None:
    net = network()
    net[1].num_groups = groups  # type: ignore[union-attr]  # a GroupNorm
    result = prune_module(net, (torch.randn(2, 3, 8, 8),), validate=False)
    removed = len(constant_channels()) if groups > 1 else 0
    assert result.report.removed_channels == removed
    assert_same_function(net, result.module, torch.randn(2, 3, 8, 8))


def written(form: str, silent: bool) -> onnx.ModelProto:
    """Return the network as exporters write it; ``open`` leaves height and width open."""
    net = Net(21, ir_version=10)
    shape = ["N", 3, "H", "W"] if form == "decomposed, open" else [2, 3, 6, 8]
    x = net.conv(net.input("x", shape), 3, CHANNELS)
    gamma, beta = net.rng.uniform(0.5, 1.5, CHANNELS), net.rng.standard_normal(CHANNELS)
    if silent:
        gamma[constant_channels()] = 0
    vectors = [value.astype(np.float32) for value in (gamma, beta)]
    if form == "node":
        y = net.op("GroupNormalization", x, *map(net.const, vectors), num_groups=GROUPS)
    else:
        flat = net.op("Reshape", x, net.ints(0, GROUPS, -1))
        ones, zeros = net.const(np.ones(GROUPS, np.float32)), net.const(np.zeros(GROUPS, np.float32))
        back = net.op("Reshape", net.op("InstanceNormalization", flat, ones, zeros), net.op("Shape", x))
        scale, shift = (net.const(value.reshape(-1, 1, 1)) for value in vectors)
        y = net.op("Add", net.op("Mul", back, scale), shift)
    net.output(net.conv(net.op("Sigmoid", y), CHANNELS, 5, 1), shape=[shape[0], 5, *shape[2:]])
    return net.model()


FORMS = ("node", "decomposed", "decomposed, open")
SIZES = ({"N": 1, "H": 6, "W": 6}, {"N": 3, "H": 5, "W": 9})


@pytest.mark.parametrize("form", FORMS)
def test_a_file_loses_whole_constant_groups(form: str, tmp_path: Path) -> None:
    _, made, _ = assert_pruned_agrees(written(form, silent=True), tmp_path, SIZES)
    assert {len(keep.keep) for keep in made.keeps if keep.size == CHANNELS} == {CHANNELS // 2}


@pytest.mark.parametrize("form", FORMS)
def test_any_groups_of_a_file_can_go(form: str) -> None:
    gone = 0
    for seed in range(4):
        _, facts, keep = prune_at_random(written(form, silent=False), seed, SIZES[seed % 2])
        gone += int((~keep & facts.classes.is_channel).sum())
    assert gone > 0


def test_channels_of_a_group_are_one_class() -> None:
    for form in FORMS:
        facts = gather_facts(trace_onnx(written(form, silent=False)).graph)
        read = next(read for read in facts.reads if read.ids.size == CHANNELS)
        classes = facts.classes.class_of[read.ids.ravel()].reshape(GROUPS, -1)
        assert (classes == classes[:, :1]).all()
        assert len(np.unique(classes)) == GROUPS
