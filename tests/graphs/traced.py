"""A small network with something of everything, some of it silenced, and its activations value by value.

Shared by the tests of constants and liveness, which claim things about every value of a graph.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.frontends.fx.frontend import trace
from prunec.frontends.fx.traced import Ref
from prunec.ir.graph import Graph


class Mixed(nn.Module):
    """Convolutions of every kind, a residual, a concat, a shuffle, squeeze-excite, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1, groups=16), nn.BatchNorm2d(32), nn.ReLU())
        self.grouped = nn.Sequential(nn.Conv2d(32, 32, 1, groups=4), nn.BatchNorm2d(32), nn.SiLU())
        self.branch = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32))
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.pool, self.up = nn.AvgPool2d(3, 2, 1), nn.ConvTranspose2d(48, 24, 2, 2)
        self.norm, self.act = nn.BatchNorm2d(24), nn.PReLU(24)
        self.head = nn.Sequential(nn.Conv2d(24, 10, 3), nn.BatchNorm2d(10), nn.Flatten(), nn.Linear(10 * 36, 5))

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        y = self.grouped(self.depthwise(stem)) + self.branch(stem)
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        first, second = y.reshape(-1, 2, 16, 8, 8).transpose(1, 2).reshape(-1, 32, 8, 8).chunk(2, dim=1)
        y = torch.cat([second, F.relu(first), stem], dim=1)
        logits: Tensor = self.head(self.act(self.norm(self.up(self.pool(y)))))
        return logits


def silenced(seed: int) -> Mixed:
    """Return a Mixed with random gammas, filters and columns set to zero."""
    torch.manual_seed(seed)
    net = Mixed().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[torch.rand(module.num_features) < 0.6] = 0
            module.bias.data.normal_()
            module.running_mean = torch.randn(module.num_features)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data[torch.rand(module.weight.shape[0]) < 0.2] = 0
            module.weight.data[:, torch.rand(module.weight.shape[1]) < 0.2] = 0
    return net


def run(net: nn.Module, x: Tensor) -> tuple[Graph, dict[str, Tensor], Tensor]:
    """Return the IR, the activation of every IR value that an FX node has, and the output."""
    traced = trace(net, (x,))
    activations: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            ref = traced.results.get(n.name)
            if isinstance(ref, Ref) and isinstance(result, Tensor):
                activations[ref.name] = result
                if result.requires_grad and not result.is_leaf:
                    result.retain_grad()
            return result

    output = Recorder(traced.module).run(x)
    return traced.graph, activations, output
