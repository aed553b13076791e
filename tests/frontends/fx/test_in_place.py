"""Forwards that write in place: torch.fx would lose some of it, and what it keeps need not go through torch.export."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from assertions import assert_same_function
from modules.blocks import cbr
from modules.networks import silence
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module


class Between(nn.Module):
    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.middle = cbr(3, 8), cbr(8, 8), nn.Conv2d(8, 2, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.middle(self.a(x))))
        return out


def _through_a_view(y: Tensor) -> Tensor:
    flat = y.view(y.size(0), y.size(1), -1)
    flat += 1
    flat[:, :, 0].mul_(2)
    return y


def _through_slices(y: Tensor) -> Tensor:
    a, b = y[:, :4], y[:, 4:]
    a += b
    return y


def _out(y: Tensor) -> Tensor:
    held = torch.zeros_like(y)
    seen = held.view(y.shape[0], -1)
    torch.mul(y.detach(), 2, out=held)
    return y + seen.view(y.shape)


def _out_in_part(y: Tensor) -> Tensor:
    held = torch.zeros_like(y)
    torch.add(y[:, :4].detach(), 1, out=held[:, :4])
    return held + y


def _seen_before(y: Tensor) -> Tensor:
    z = y * 2
    seen = z[:, :4]
    z[:, :4] = 1.5
    return torch.cat([seen, z[:, 4:]], 1)


def _numbers(y: Tensor) -> Tensor:
    size = y.shape[2]
    more = size
    more += 2
    more //= 2
    return F.interpolate(y, size=(more, size))


def _masks(y: Tensor) -> Tensor:
    mask = y > 0
    mask &= y < 3
    y -= 0.5
    return y * mask


SEEN = [_through_a_view, _through_slices, _out, _out_in_part, _seen_before, _numbers, _masks]


def _halves(y: Tensor) -> Tensor:
    z = torch.empty_like(y)
    z[:, :4] = y[:, :4]
    z[:, 4:] = y[:, 4:] * 2
    return z


def _rows(y: Tensor) -> Tensor:
    z = torch.empty_like(y)
    z[:, :, ::2] = y[:, :, ::2]
    z[:, :, 1::2] = y[:, :, 1::2] * 2
    return z


def _inner(y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, :4, 1:-1, 1:-1] = y[:, 4:, 1:-1, 1:-1]
    z[..., 0] = y[..., 0]
    z[:, -1] += 1
    z[:, :, 0, ::2] = 3
    return z + y


def _steps_of_channels(y: Tensor) -> Tensor:
    z = torch.empty(y.shape, dtype=y.dtype)
    z[:, ::2] = y[:, :4]
    z[:, 1::2] = y[:, 4:]
    return z


def _boxes(y: Tensor) -> Tensor:
    z = y.sigmoid()
    z[..., 0:2] = z[..., 0:2] * 2 - 0.5
    z[..., 2:4] = (z[..., 2:4] * 2) ** 2
    return z


def _parts(y: Tensor) -> Tensor:
    y = y.clone()
    y[:, :4] *= 2
    y[:, 4:] += 1
    return y


def _added(y: Tensor) -> Tensor:
    same = y
    y += 1
    return y + same


UNSEEN = [_halves, _rows, _inner, _steps_of_channels, _boxes, _parts, _added]


@pytest.mark.parametrize("middle", [*SEEN, *UNSEEN])
def test_what_is_written_in_place_is_not_lost(middle: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net, x = silence(Between(middle)), torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,))
    assert result.report.removed_channels >= 3
    assert_same_function(net, result.module, x, torch.randn(3, 3, 24, 24))
    if middle in UNSEEN:
        assert not any("torch.export" in note for note in result.report.notes)
    lossy = prune_module(net, (x,), criterion="l1", target_macs=0.6)
    assert lossy.module(x).shape == net(x).shape


def test_a_sum_in_place_that_nobody_sees_is_a_plain_sum() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = cbr(3, 8), cbr(8, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = self.b(y)
            z += y
            out: Tensor = self.head(z)
            return out

    pruned = prune_module(silence(Residual()), (torch.randn(2, 3, 8, 8),)).module.train()
    pruned(torch.randn(2, 3, 8, 8)).sum().backward()  # a ReLU's result that is written into has no gradient
    assert pruned.get_parameter("a.0.weight").grad is not None


def _by_sizes(y: Tensor) -> Tensor:
    more = torch.zeros(y.shape[0], 8, y.shape[2], y.shape[3], dtype=y.dtype)
    grid = torch.stack(
        torch.meshgrid(torch.linspace(0, 1, y.shape[2]), torch.linspace(0, 1, y.shape[3]), indexing="ij")
    )
    size = torch.tensor(y.shape[2:]).float()
    for axis in range(y.ndim - len(y.shape), 1):
        y = y + more * axis
    return y * grid[:1] / size.max()


def test_tensors_made_of_sizes_keep_sizes_open() -> None:
    torch.manual_seed(0)
    net, x = silence(Between(_by_sizes)), torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,))
    assert not any("torch.export" in note for note in result.report.notes)
    assert result.report.removed_channels >= 4
    assert_same_function(net, result.module, x, torch.randn(3, 3, 24, 20))


def test_going_over_a_parameter_is_followed() -> None:
    class Scaled(Between):
        def __init__(self) -> None:
            super().__init__(self.scaled)
            self.scales = nn.Parameter(torch.rand(2))

        def scaled(self, y: Tensor) -> Tensor:
            for scale in self.scales:
                y = y * scale
            return y * len(self.scales)

    net, x = silence(Scaled()), torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,))
    assert not any("torch.export" in note for note in result.report.notes)
    assert result.report.removed_channels >= 4
