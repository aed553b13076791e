"""Constants that are uneven at the border before a convolution reads them leave all the same, exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from assertions import assert_same_function
from graphs.tiny import Tiny
from onnx_models.nets import Net, assert_pruned_agrees, num_removed
from torch import nn

from prunec.api import prune_module
from prunec.passes.constants import constants
from prunec.passes.profiles import profiles

CHANNELS = 12
SILENT = (0, 3, 4, 7, 9)

Step = Callable[[Net, str], str]


def padded(net: Net, x: str) -> str:
    return str(net.op("Pad", x, net.ints(0, 0, 1, 2, 0, 0, 2, 1)))


def averaged(net: Net, x: str) -> str:
    attrs = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    return str(net.op("AveragePool", x, **attrs))


def both(net: Net, x: str) -> str:
    return averaged(net, padded(net, x))


def joined(net: Net, x: str) -> str:
    """Three maps in one tensor: padded to the right, padded to the left, and constant."""
    right = net.op("Pad", x, net.ints(0, 0, 0, 0, 0, 0, 0, 1))
    left = net.op("Pad", x, net.ints(0, 0, 0, 1, 0, 0, 0, 0))
    wider = net.op("Pad", x, net.ints(0, 0, 0, 0, 0, 0, 0, 1), mode="edge")
    return str(net.op("Concat", right, left, wider, axis=1))


def model(step: Step, **conv: object) -> onnx.ModelProto:
    net = Net()
    x = net.op("LeakyRelu", net.conv(net.input("x", ["n", 3, "h", "w"]), 3, CHANNELS, silent=SILENT))
    made = step(net, x)
    net.output(net.conv(made, net.channels(made), 4, **conv))
    return net.model()


SIZES = ({"n": 1, "h": 8, "w": 9}, {"n": 2, "h": 5, "w": 7})


@pytest.mark.parametrize("step", [padded, averaged, both])
@pytest.mark.parametrize("own", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_all_but_one_constant_leave(step: Step, own: list[int], tmp_path: Path) -> None:
    _, made, after = assert_pruned_agrees(model(step, pads=own), tmp_path, sizes=SIZES)
    assert made.exact
    assert weight_of_first(after) == CHANNELS - len(SILENT) + 1


def test_every_map_has_a_carrier_of_its_own(tmp_path: Path) -> None:
    _, made, _ = assert_pruned_agrees(model(joined), tmp_path, sizes=SIZES)
    assert num_removed(made)
    folds = [fold for fold in made.folds if fold.kind == "carrier"]
    assert sorted(fold.carrier // CHANNELS for fold in folds) == [0, 1, 2]
    assert all({position // CHANNELS for position in fold.positions} == {fold.carrier // CHANNELS} for fold in folds)


def test_padding_with_another_value_is_not_followed(tmp_path: Path) -> None:
    def ones(net: Net, x: str) -> str:
        return str(net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), net.const(np.float32(1))))

    _, made, _ = assert_pruned_agrees(model(ones, pads=[0] * 4), tmp_path, sizes=SIZES)
    assert not num_removed(made)


def test_an_average_that_counts_padding_loses_its_constants_in_modules() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.Conv2d(CHANNELS, 4, 1)
    ).eval()
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.bias.uniform_(0.5, 1.5)
        norm.weight[list(SILENT)] = 0
    x = torch.randn(2, 3, 11, 9)
    pruned = prune_module(net, (x,))
    assert pruned.plan.exact
    assert pruned.report.removed_channels == len(SILENT) - 1
    assert_same_function(net, pruned.module, x)


def test_coefficients_and_keys_of_a_padded_constant() -> None:
    tiny = Tiny()
    x = tiny.input(1, 3, 6, 6)
    zero = tiny.param(np.zeros((2, 3, 1, 1)))
    bias = tiny.param(np.array([2.0, 0.0]))
    made = tiny.node("conv", [x, zero, bias], (1, 2, 6, 6), "float32", pads=[0] * 4, strides=[1, 1], conv_groups=1)
    out = tiny.node("pad", [made], (1, 2, 8, 8), "float32", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.0)
    graph = tiny.graph(out)
    found = profiles(graph, constants(graph))
    assert set(found) == {out}
    assert found[out].coefficients.ravel().tolist()[0] == 2.0
    assert found[out].keys.ravel().tolist() == [-1, 0]  # a map of no input; zeros stay constant


def weight_of_first(model: onnx.ModelProto) -> int:
    """Return how many output channels the first convolution has left."""
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return next(stored[node.input[1]][0] for node in model.graph.node if node.op_type == "Conv")
