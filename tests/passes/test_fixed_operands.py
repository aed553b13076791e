"""Contractions of parameters alone: a learned input, a weight that is the product of two. Their channels count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from assertions import assert_same_function
from onnx_models.masks import prune_at_random
from onnx_models.nets import Net, assert_pruned_agrees, num_removed
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module

INNER, CHANNELS, SILENT = 6, 8, (1, 4)


class LowRank(nn.Module):
    """A linear layer whose weight is the product of two thin matrices; some of the inner products are zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Linear(12, 5)
        self.down, self.up = nn.Parameter(torch.randn(INNER, CHANNELS)), nn.Parameter(torch.randn(12, INNER))
        self.up.data[:, list(SILENT)] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self.stem(x).relu().mean((2, 3)), self.up @ self.down)
        return self.head(y.relu())  # type: ignore[no-any-return]


class LearnedInput(nn.Module):
    """A generator: it starts from a stored map, and the input only scales what comes of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.start = nn.Parameter(torch.randn(1, INNER, 4, 4))
        self.start.data[:, list(SILENT)] = 0
        self.up, self.scale = nn.ConvTranspose2d(INNER, 8, 4, 2, 1), nn.Linear(4, 8)
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.head((self.up(self.start) * self.scale(z)[:, :, None, None]).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("make", "shape"), [(LowRank, (2, 3, 8, 8)), (LearnedInput, (2, 4))])
def test_modules_compute_the_same(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    net, x = make().eval(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = prune_module(net, (x,), validate=False)
    assert_same_function(net, result.module, x)
    kept = {(keep.param, keep.axis): (keep.size, len(keep.keep)) for keep in result.plan.keeps}
    assert set(kept.values()) == {(INNER, INNER - len(SILENT))}, "what is zero goes, at both ends, and nothing else"


def low_rank() -> onnx.ModelProto:
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", [2, 3, 8, 8]), 3, CHANNELS, 1))
    x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    up = net.weight(INNER, 12)
    up[list(SILENT)] = 0
    weight = net.op("MatMul", net.const(net.weight(CHANNELS, INNER)), net.op("Relu", net.const(up)))
    net.output(net.op("MatMul", net.op("Relu", net.op("MatMul", x, weight)), net.const(net.weight(12, 5))))
    return net.model()


def learned_input(kind: str) -> onnx.ModelProto:
    net = Net(13)
    start = net.rng.standard_normal((1, INNER, 4, 4)).astype(np.float32)
    start[:, list(SILENT)] = 0
    start[:, [3, 5]] = 0.5  # constant, and not zero: it stays
    if kind == "Conv":
        made = net.conv(net.const(start), INNER, 8)
    else:
        made = net.op(kind, net.const(start), net.const(net.weight(INNER, 8, 3, 3)), pads=[1, 1, 1, 1])
    net.output(net.conv(net.op("Relu", net.op("Mul", made, net.input("z", ["N", 8, 1, 1]))), 8, 3))
    return net.model()


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "low rank": low_rank,
    "convolved": lambda: learned_input("Conv"),
    "upsampled": lambda: learned_input("ConvTranspose"),
}


@pytest.mark.parametrize("name", MODELS)
def test_files_compute_the_same(name: str, tmp_path: Path) -> None:
    _, made, _ = assert_pruned_agrees(MODELS[name](), tmp_path)
    if name != "low rank":  # products of stored matrices may be folded before anything is looked at
        assert num_removed(made) == 2 * len(SILENT)


@pytest.mark.parametrize("name", MODELS)
def test_any_channels_of_theirs_can_go(name: str) -> None:
    gone = 0
    for seed in range(3):
        _, facts, keep = prune_at_random(MODELS[name](), seed)
        gone += int((~keep & ~facts.classes.pinned).sum())
    assert gone > 0
