"""Channels that are constant and stay: each is told with the node that holds it and where it is constant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx_models.nets import Net
from torch import nn

from prunec.api import analyze_onnx, prune_module
from prunec.report.findings import Blocked, LayerChannels
from prunec.report.survivors import BALANCED, RESIDUAL

CHANNELS = 8


def blocked(net: Net, folder: Path) -> tuple[Blocked, ...]:
    onnx.save(net.model(), folder / "net.onnx")
    return analyze_onnx(folder / "net.onnx").blocked


def layer(net: Net, value: str) -> str:
    """Return the name of the node that makes a value."""
    return next(node.name for node in net.nodes if value in node.output)


def test_a_stream_that_is_constant_in_part_is_held_by_its_sum(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [1, 3, 6, 6])
    first = net.conv(x, 3, CHANNELS, silent=(2, 5))
    second = net.conv(x, 3, CHANNELS, silent=(5,))
    total = net.op("Add", net.op("Relu", first), net.op("Relu", second))
    net.output(net.conv(total, CHANNELS, 4, pads=[0] * 4))
    (found,) = blocked(net, tmp_path)
    assert (found.node, found.op, found.reason) == (layer(net, total), "Add", RESIDUAL)
    assert found.channels == 1
    assert found.layers == (LayerChannels(layer(net, first), (2,)),)


def test_a_grouped_convolution_holds_what_some_groups_could_lose(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, 4))
    spread = net.conv(x, 4, 8, silent=(0, 5), group=4)
    net.output(net.conv(net.op("Relu", spread), 8, 4))
    (found,) = blocked(net, tmp_path)
    assert (found.node, found.op, found.reason) == (layer(net, spread), "Conv", BALANCED)
    assert found.channels == 2
    assert found.layers == (LayerChannels(layer(net, spread), (0, 5)),)


def test_a_gated_constant_is_held_by_the_gate(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [1, 3, 6, 6])
    made = net.conv(x, 3, CHANNELS, silent=(1,))
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", made), CHANNELS, CHANNELS, kernel=1))
    gated = net.op("Mul", made, gate)
    net.output(net.conv(gated, CHANNELS, 4, pads=[0] * 4))
    (found,) = blocked(net, tmp_path)
    assert (found.node, found.op) == (layer(net, gated), "Mul")
    assert "gate" in found.reason
    assert found.layers == (LayerChannels(layer(net, made), (1,)),)


def test_what_goes_is_not_listed(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=(1, 2)))
    net.output(net.conv(x, CHANNELS, 4, pads=[0] * 4))
    assert blocked(net, tmp_path) == ()


def test_constants_of_any_size_count_once(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [1, 3, 6, 6])
    gamma = np.ones(CHANNELS, np.float32)
    gamma[[3, 4]] = 0
    ones, beta = np.ones(CHANNELS, np.float32), np.full(CHANNELS, 0.7, np.float32)
    made = net.conv(x, 3, CHANNELS)
    first = net.op("BatchNormalization", made, *map(net.const, (gamma, beta, ones, ones)))
    total = net.op("Add", first, net.conv(x, 3, CHANNELS))
    net.output(net.conv(total, CHANNELS, 4, pads=[0] * 4))
    (found,) = blocked(net, tmp_path)
    assert found.channels == 2
    assert found.layers == (LayerChannels(layer(net, made), (3, 4)),)


def test_channels_that_no_node_holds_are_told_without_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()
    with torch.no_grad():
        net[1].weight[0], net[1].bias[0] = 0.0, 1.0  # one constant channel: the one that carries the border
    message = prune_module(net, (torch.randn(1, 3, 8, 8),)).report.message
    assert "most at zero-padded convolutions: " in message
