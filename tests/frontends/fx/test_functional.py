"""Writes into slices and circular padding are followed, not pinned; what cannot be told apart stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from assertions import assert_same_function
from modules.training import trained_like
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import analyze_module, prune_module
from prunec.frontends.fx.frontend import trace
from prunec.pipeline.export import export_checked


class Circular(nn.Module):
    """Circular padding in a convolution, called twice, by a function and by a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, (3, 5), padding=(1, 2), padding_mode="circular")
        self.third, self.norm3 = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.pad = nn.CircularPad2d((1, 0, 2, 1))
        self.head = nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = self.second(F.relu(self.second(x)))
        x = F.relu(self.norm3(self.third(F.pad(x, (1, 1, 1, 1), mode="circular"))))
        out: Tensor = self.head(self.pad(x))
        return out


class Assembled(nn.Module):
    """Two branches written side by side into a fresh tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.norm_left = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.right, self.norm_right = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(10, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        z = x.new_zeros(x.shape[0], 10, x.shape[2], x.shape[3])
        z[:, :6] = F.relu(self.norm_left(self.left(x)))
        z[:, 6:] = F.relu(self.norm_right(self.right(x)))
        out: Tensor = self.head(z)
        return out


class Overwritten(nn.Module):
    """Half of a copy's channels replaced, as partial convolutions do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.part, self.norm_part = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = x.clone()
        y[..., :4, :, :] = F.relu(self.norm_part(self.part(x[:, :4])))
        out: Tensor = self.head(y)
        return out


class Watched(nn.Module):
    """A view that was taken before the write sees it: this must not be made functional."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = x.new_zeros(x.shape[0], 10, x.shape[2], x.shape[3])
        view = z[:, :6]
        z[:, :6] = self.left(x)
        z[:, 6:] = self.right(x)
        out: Tensor = self.head(torch.cat((z, view), dim=1))
        return out


class Broadcast(nn.Module):
    """A number, and one channel for many, written into a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = x.new_zeros(x.shape[0], 8, x.shape[2], x.shape[3])
        z[:, :4] = self.one(x)
        z[:, 4:] = 1.5
        out: Tensor = self.head(z)
        return out


class Stacked(nn.Module):
    """Parts of a split in a list that grows, as in YOLOv8's blocks, and others gone over in loops."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)) for _ in range(2))
        self.head = nn.Conv2d(48, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        parts = list(x.chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        parts += [F.relu(part) for part in torch.split(x, split_size_or_sections=[5, 7], dim=1)]
        parts += [part * 2 for part in torch.tensor_split(x, (3, 8), dim=1)]
        out: Tensor = self.head(torch.cat(parts, 1))
        return out


class Short(nn.Module):
    """A chunk that makes fewer parts than it says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat(list(self.stem(x).chunk(3, 1)), 1))
        return out


def half_silent(net: nn.Module) -> nn.Module:
    net = trained_like(net)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight[::2] = 0.0
    return net


@pytest.mark.parametrize("build", [Circular, Assembled, Overwritten, Stacked])
def test_silent_channels_go_exactly(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = half_silent(build())
    example = torch.randn(2, 3, 12, 12)
    pruned = prune_module(net, (example,))
    assert pruned.plan.exact
    assert pruned.report.after.params < 0.9 * pruned.report.before.params
    assert_same_function(net, pruned.module, example, torch.randn(1, 3, 17, 13))


@pytest.mark.parametrize("build", [Circular, Assembled, Overwritten, Stacked])
def test_only_inputs_and_outputs_are_pinned(build: Callable[[], nn.Module]) -> None:
    found = analyze_module(build(), (torch.zeros(2, 3, 12, 12),))
    assert {pin.op for pin in found.pins} == {"output"}


@pytest.mark.parametrize("build", [Circular, Assembled])
def test_the_pruned_network_becomes_onnx(build: Callable[[], nn.Module], tmp_path: object) -> None:
    torch.manual_seed(0)
    net = half_silent(build())
    example = (torch.randn(1, 3, 12, 12),)
    checked = export_checked(prune_module(net, example).module, example, f"{tmp_path}/net.onnx", original=net)
    assert checked.passed


@pytest.mark.parametrize("build", [Watched, Broadcast, Short])
def test_writes_that_others_see_or_that_broadcast_keep_their_meaning(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = build().eval()
    example = torch.randn(2, 3, 8, 8)
    assert_same_function(net, prune_module(net, (example,)).module, example)


def test_parts_of_a_split_are_gone_over_without_torch_export() -> None:
    assert not trace(Stacked(), (torch.zeros(2, 3, 12, 12),)).exported
    assert trace(Short(), (torch.zeros(2, 3, 12, 12),)).exported


def test_the_users_module_keeps_its_padding() -> None:
    net = Circular()
    trace(net, (torch.zeros(2, 3, 12, 12),))
    assert net.second.padding_mode == "circular"
    assert net.second.padding == (1, 2)
