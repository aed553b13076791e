"""Global response normalisation (ConvNeXt V2), which divides by a mean over channels: exact, and told by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunec.api import prune_module


class LastAxis(nn.Module):
    """The paper's code: channels are the last axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(1, 1, 1, size)) for _ in range(2))

    def norms(self, x: Tensor) -> Tensor:
        return torch.norm(x, p=2, dim=(1, 2), keepdim=True)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        norms = self.norms(x)
        return self.gamma * (x * (norms / (norms.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class ByPower(LastAxis):
    """timm's: x.norm, and addcmul."""

    def forward(self, x: Tensor) -> Tensor:
        norms = x.norm(p=2, dim=(1, 2), keepdim=True)
        scaled = x * (norms / (norms.mean(dim=-1, keepdim=True) + 1e-6))
        return x + torch.addcmul(self.beta, self.gamma, scaled)


class BySquares(LastAxis):
    """By hand: the root of a sum of squares."""

    def norms(self, x: Tensor) -> Tensor:
        return (x * x).sum((1, 2), keepdim=True).sqrt()


class Net(nn.Module):
    """A block of ConvNeXt V2 between two convolutions; six of its hidden channels are zero."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.up, self.grn, self.down = nn.LayerNorm(8), nn.Linear(8, 32), norm(32), nn.Linear(32, 8)
        self.a, self.b, self.o = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.up.weight[:6] = 0
            self.up.bias[:6] = 0
            self.b.weight[:4] = 0
            self.b.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.down(self.grn(torch.nn.functional.gelu(self.up(y))))
        return self.o(torch.relu(self.b(self.a(x + y.permute(0, 3, 1, 2)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", [LastAxis, ByPower, BySquares])
def test_a_mean_over_channels_keeps_them_by_name_and_leaves_the_others_theirs(
    norm: Callable[[int], nn.Module],
) -> None:
    torch.manual_seed(0)
    net, x = Net(norm).eval(), torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,))
    assert result.report.removed_channels == 4
    assert ("mean runs over its channels", 32) in {(pin.reason, pin.channels) for pin in result.report.pins}
    torch.testing.assert_close(result.module(x), net(x), atol=1e-4, rtol=1e-4)
