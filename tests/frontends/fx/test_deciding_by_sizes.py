"""Forwards that decide by sizes are followed as the example decides, without torch.export, and say so."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module
from prunec.frontends.fx.frontend import trace
from prunec.frontends.fx.running.untouched import Untouched
from prunec.frontends.fx.tracing.export import export


def cut(x: Tensor) -> Tensor:
    """The way of a port of TensorFlow's SAME."""
    high, wide = (max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in x.size()[-2:])
    return F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2]) if high > 0 or wide > 0 else x


def windows(x: Tensor) -> Tensor:
    if x.shape[-1] % 4 != 0:
        x = F.interpolate(x, size=(8, 8))
    return torch.cat([x[..., 4 * place : 4 * place + 4] for place in range(x.shape[-1] // 4)], dim=0)


def over_rows(x: Tensor) -> Tensor:
    return torch.stack([row.relu() for row in x.permute(2, 0, 1, 3)], dim=2)


def by_int(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, int(x.shape[2] ** 0.5 * 2))


def by_length(x: Tensor) -> Tensor:
    return x[:, :, : len(x.transpose(0, 2)) // 2]


def grid_kept(x: Tensor) -> Tensor:
    """The way of a detection head: offsets of cells, made when the size changes."""
    high, wide = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    if rows.shape[0] != high or min(high, wide) < 2:
        raise ValueError("cannot be")
    return x.view(-1, 8, len(columns), wide)


class Deciding(nn.Module):
    def __init__(self, decide: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 5, 1)
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.decide(self.first(x)))
        return y


@pytest.mark.parametrize("decide", [cut, windows, over_rows, by_int, by_length, grid_kept])
def test_it_is_read_by_torch_fx_and_pruned(decide: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("torch.export was asked")

    monkeypatch.setattr(torch.export, "export", never)
    torch.manual_seed(0)
    net, x = Deciding(decide).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net.first[1].weight[:4] = 0
        net.first[1].bias[:4] = 0.5
    found = prune_module(net, (x,))
    assert found.report.removed_channels > 0
    torch.testing.assert_close(found.module(x), net(x), rtol=1e-4, atol=1e-5)


def test_sizes_that_decide_otherwise_are_refused_with_the_line() -> None:
    found = trace(Deciding(windows).eval(), (torch.zeros(2, 3, 8, 8),))
    assert not found.exported
    (note,) = found.notes
    assert "test_deciding_by_sizes.py:" in note
    assert found.module(torch.zeros(5, 3, 8, 8)).shape[0] == 10
    with pytest.raises(AssertionError, match=r"traced for other sizes.*in windows"):
        found.module(torch.zeros(2, 3, 8, 10))


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "images": lambda x: torch.stack([image * 2 for image in x.unbind(0)]),
    "images of a list": lambda x: torch.cat([image * 2 for image in [*x.split(1)]]),
    "columns": lambda x: torch.cat([columns * 2 for columns in x.split(4, 3)], 3),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_are_gone_through_are_all_there_are_or_the_size_is_refused(name: str) -> None:
    net, x = Deciding(PARTS[name]).eval(), torch.randn(1, 3, 8, 8)
    found = trace(net, (x,))
    assert not found.exported
    torch.testing.assert_close(found.module(x), net(x))
    with pytest.raises(AssertionError, match="traced for other sizes"):
        found.module(torch.randn(2, 3, 8, 16))


def test_parts_of_the_channels_are_as_many_at_all_sizes() -> None:
    net = Deciding(lambda x: torch.cat([part * 2 for part in x.split(2, 1)], 1)).eval()
    found, x = trace(net, (torch.randn(1, 3, 8, 8),)), torch.randn(2, 3, 8, 16)
    assert not found.notes
    torch.testing.assert_close(found.module(x), net(x))


def test_an_exported_network_takes_the_batch_of_the_example() -> None:
    net, x = Deciding(PARTS["images"]).eval(), torch.randn(1, 3, 8, 8)
    exported = export(net, (x,), None, Untouched(net, (x,)))
    torch.testing.assert_close(exported(x), net(x))
