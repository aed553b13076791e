"""Layers that run on several maps (heads of a detector, towers of a siamese network) are pruned by score, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from assertions import contraction_macs
from onnx_models.masks import prune_at_random
from onnx_models.nets import Net, assert_pruned_agrees, prune
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module
from prunec.passes.cost import cost

CHANNELS, INNER = 8, 12


class Heads(nn.Module):
    """One head on three levels of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(CHANNELS, INNER, 3, padding=1), nn.ReLU(), nn.Conv2d(INNER, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        levels = [F.relu(self.stem(x))]
        levels += [F.max_pool2d(levels[-1], 2), F.avg_pool2d(levels[-1], 4)]
        return torch.cat([self.head(level).flatten(2) for level in levels], 2)


def test_a_module_with_a_shared_head_meets_its_budget() -> None:
    net, x = Heads().eval(), torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,), criterion="l1", target_macs=0.5, multiple_of=1)
    assert contraction_macs(result.module, x) <= 0.5 * contraction_macs(net, x)
    assert {(keep.param, keep.axis) for keep in result.plan.keeps} >= {("head.0.weight", 0), ("head.2.weight", 1)}


def heads(silent: tuple[int, ...] = (), kernel: int = 3) -> onnx.ModelProto:
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 16, 16]), 3, CHANNELS, silent=silent))
    other = net.op("Sigmoid", net.conv(x, CHANNELS, CHANNELS))
    first, second = net.const(net.weight(INNER, CHANNELS, kernel, kernel)), net.const(net.weight(4, INNER, 1, 1))
    ends = []
    for level in (x, other, net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])):
        y = net.op("Relu", net.op("Conv", level, first, pads=[kernel // 2] * 4))
        ends.append(net.op("Reshape", net.op("Conv", y, second), net.ints(1, 4, -1)))
    net.output(net.op("Concat", *ends, axis=2))
    return net.model()


def test_a_file_with_a_shared_head_meets_its_budget() -> None:
    traced, made, pruned = prune(heads(), criterion="l1", target_macs=0.5, multiple_of=1)
    whole = cost(traced.graph).macs
    assert cost(prune(pruned)[0].graph).macs <= 0.5 * whole
    assert any(keep.size == INNER and len(keep.keep) < INNER for keep in made.keeps)


@pytest.mark.parametrize("silent", [(), (1, 2, 5)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_any_channels_of_a_shared_head_can_go(kernel: int, silent: tuple[int, ...]) -> None:
    """What is constant on one level and varies on another stays: the shared weight cannot take it in for one alone."""
    gone = np.zeros(INNER, np.int64)
    for seed in range(4):
        _, facts, keep = prune_at_random(heads(silent, kernel), seed)
        inner = next(read for read in facts.reads if read.ids.size == INNER)
        gone += ~keep[facts.classes.class_of[inner.ids.ravel()]]
    assert gone.any()


def test_constants_of_one_level_stay(tmp_path: Path) -> None:
    assert_pruned_agrees(heads((1, 2, 5)), tmp_path)


@pytest.mark.parametrize("pads", [(1, 1), (1, 0), (0, 0)])
def test_what_stands_for_constants_at_one_level_must_do_so_at_all(pads: tuple[int, int], tmp_path: Path) -> None:
    """Channels 1 and 2 are the same constants at both levels; 5, the largest at the first, varies at the second."""
    net = Net(13)
    first = net.weight(CHANNELS, 3, 3, 3)
    first[[1, 2, 5]] = 0
    bias = np.linspace(0.1, 0.4, CHANNELS, dtype=np.float32)
    bias[5] = 2.0
    x = net.op("Relu", net.op("Conv", net.input("x", [1, 3, 12, 12]), net.const(first), net.const(bias), pads=[1] * 4))
    second = net.weight(CHANNELS, CHANNELS, 3, 3)
    second[[1, 2]] = 0
    other = net.op("Add", x, net.op("Conv", x, net.const(second), pads=[1] * 4))
    shared = net.const(net.weight(INNER, CHANNELS, 3, 3))
    for level, pad in zip((x, other), pads, strict=True):
        y = net.op("Conv", level, shared, net.const(net.weight(INNER)), pads=[pad] * 4)
        net.output(net.op("Conv", net.op("Sigmoid", y), net.const(net.weight(4, INNER, 1, 1))))
    assert_pruned_agrees(net.model(), tmp_path)


@pytest.mark.parametrize("other", ["Conv", "InstanceNormalization"])
def test_bias_that_another_layer_reads_stays_as_it_is(other: str, tmp_path: Path) -> None:
    """Tools that slim files merge tensors that are equal, most of all biases of zeros."""
    net = Net(13)
    bias = net.const(np.zeros(CHANNELS, np.float32))
    image = net.input("x", [1, 3, 12, 12])
    x = net.op("Sigmoid", net.conv(image, 3, CHANNELS, silent=(1, 2, 5)))
    x = net.op("Conv", x, net.const(net.weight(CHANNELS, CHANNELS, 1, 1)), bias)
    if other == "Conv":
        y = net.op("Conv", image, net.const(net.weight(CHANNELS, 3, 3, 3)), bias)
    else:
        y = net.op(
            "InstanceNormalization", net.conv(image, 3, CHANNELS), net.const(np.ones(CHANNELS, np.float32)), bias
        )
    net.output(x)
    net.output(y)
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path)
    assert any(len(keep.keep) == CHANNELS - 3 for keep in made.keeps)
