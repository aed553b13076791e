"""Forwards that write in place are fitted as those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module
from prunec.data.calibration import Calibration
from prunec.fitting.stages_module import ModuleStages
from prunec.frontends.fx.frontend import trace
from tests.modules.blocks import Head, cbr


class Block(nn.Module):
    """A residual block with a convolution in its shortcut, which stands behind the others in the forward."""

    def __init__(self, inp: int, out: int, style: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inp, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.down, self.style = nn.Conv2d(inp, out, 1, 2), style

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        if self.style == "plain":
            return F.relu(self.bn2(self.conv2(F.relu(y))) + self.down(x))
        if self.style == "functions":
            y = self.bn2(self.conv2(F.relu_(y)))
            y += self.down(x)
            return F.relu_(y)
        if self.style == "methods":
            return self.bn2(self.conv2(y.relu_())).add_(self.down(x)).relu_()  # type: ignore[no-any-return]
        y = self.bn2(self.conv2(F.relu(y))) + self.down(x)
        view = y.view(y.shape)
        view.relu_()
        return view


def network(style: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(cbr(3, 8), Block(8, 12, style), Block(12, 16, style), Head(16)).train()
    with torch.no_grad():
        for seed in range(5):
            net(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
    return net.eval()


def pruned(style: str, folder: Path, orders: int) -> nn.Module:
    how: dict[str, Any] = {"target_macs": 0.6, "validate": False, "calibration": Calibration(folder, orders=orders)}
    return prune_module(network(style), (torch.zeros(1, 3, 16, 16),), **how).module


@pytest.mark.parametrize("orders", [1, 6])
@pytest.mark.parametrize("style", ["functions", "methods", "views"])
def test_the_fit_is_that_of_the_plain_forward(tmp_path: Path, style: str, orders: int) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((80, 3, 16, 16)).astype(np.float32))
    x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted, plain, found = (
            network("plain")(x),
            pruned("plain", tmp_path, orders)(x),
            pruned(style, tmp_path, orders)(x),
        )
    if style == "views":  # the order of the forward is kept, so layers are fitted in another order
        assert (found - wanted).square().sum() < 1.3 * (plain - wanted).square().sum()
    else:
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("style", "in_order"), [("plain", False), ("functions", False), ("methods", False), ("views", True)]
)
def test_only_writing_into_views_keeps_the_order(style: str, in_order: bool) -> None:
    x = torch.randn(2, 3, 16, 16)
    net = network(style)
    traced = trace(net, (x,))
    stages = ModuleStages(traced, traced.module, [{traced.graph.inputs[0]: x.numpy()}])
    assert stages.in_order == in_order
    stages.advance(traced.graph.outputs)
    with torch.no_grad():
        np.testing.assert_allclose(stages.value(traced.graph.outputs[0], 0), net(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_method_with_no_ordinary_form_stays_as_it_is() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return self.conv(x).requires_grad_().relu()

    x, net = torch.randn(2, 3, 4, 4), Watched().eval()
    traced = trace(net, (x,))
    stages = ModuleStages(traced, traced.module, [{traced.graph.inputs[0]: x.numpy()}])
    stages.advance(traced.graph.outputs)
    np.testing.assert_allclose(stages.value(traced.graph.outputs[0], 0), net(x).detach().numpy(), atol=1e-5)
