"""Forwards that compute with image sizes: what can stay open does, and what the trace fixes is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import Pruned, prune_module


def block(i: int, o: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU())


class Detector(nn.Module):
    """YOLOv5's head: a grid of the map's size is kept on the module, and made anew when the size changes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(block(3, 8, 2), block(8, 8, 2)), nn.Conv2d(8, 10, 1)
        self.grid = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.backbone(x))
        batch, _, height, width = y.shape
        y = y.view(batch, 2, 5, height, width).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        if self.grid.shape[2:4] != y.shape[2:4]:
            ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            self.grid = torch.stack((xs, ys), 2).view(1, 1, height, width, 2).float()
        return torch.cat(((y[..., :2] * 2 - 0.5 + self.grid) * 4, y[..., 2:]), -1).view(batch, -1, 5)


class Warp(nn.Module):
    """PWC-Net's: a map is sampled where a flow says, on a grid of its own size, with a mask written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.flow, self.o = block(3, 8), nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        batch, _, height, width = y.size()
        xs = torch.arange(width).view(1, -1).repeat(height, 1).view(1, 1, height, width).repeat(batch, 1, 1, 1)
        ys = torch.arange(height).view(-1, 1).repeat(1, width).view(1, 1, height, width).repeat(batch, 1, 1, 1)
        at = torch.cat((xs, ys), 1).float() + self.flow(y)
        at[:, 0] = 2.0 * at[:, 0].clone() / max(width - 1, 1) - 1.0
        at[:, 1] = 2.0 * at[:, 1].clone() / max(height - 1, 1) - 1.0
        at = at.permute(0, 2, 3, 1)
        mask = F.grid_sample(torch.ones(y.size()), at, align_corners=True)
        mask[mask < 0.9999] = 0
        mask[mask > 0] = 1
        return self.o(F.grid_sample(y, at, align_corners=True) * mask)  # type: ignore[no-any-return]


class Reader(nn.Module):
    """A CRNN: rows become features, columns a sequence; its height is fixed by a layer, its width is not."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(block(3, 8), nn.MaxPool2d(2), block(8, 8), nn.MaxPool2d((2, 1)))
        self.lstm, self.o = nn.LSTM(16, 8, bidirectional=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        batch, channels, height, width = y.size()
        assert height == 2, "the height must be 2"
        y = y.reshape(batch, channels * height, width).permute(2, 0, 1)
        return self.o(self.lstm(y)[0])  # type: ignore[no-any-return]


class Hard(Reader):
    """The same with a width that is written out: the sizes of the example are the network's."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).view(-1, 16, 8).permute(2, 0, 1)
        return self.o(self.lstm(y)[0])  # type: ignore[no-any-return]


class ByParity(nn.Module):
    """Odd maps are padded: a decision by sizes, which a trace takes once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = block(3, 8), nn.Conv2d(8, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.shape[-1] % 2:
            y = F.pad(y, (0, 1))
        return self.o(y)  # type: ignore[no-any-return]


Sizes = tuple[int, int]
OPEN: dict[str, tuple[Callable[[], nn.Module], Sizes, Sizes]] = {
    "detector": (Detector, (16, 16), (32, 24)),
    "warp": (Warp, (12, 12), (18, 20)),
    "reader": (Reader, (8, 16), (8, 32)),
    "parity": (ByParity, (8, 8), (8, 12)),
}


def pruned(make: Callable[[], nn.Module], size: Sizes) -> tuple[nn.Module, Pruned]:
    net = make().eval()
    for part in net.modules():  # half of the channels are constant
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data[::2] = 0
            part.bias.data.normal_()
    return net, prune_module(net, (torch.randn(1, 3, *size),))


@pytest.mark.parametrize("name", OPEN)
def test_sizes_that_a_forward_computes_with_stay_open(name: str) -> None:
    make, size, other = OPEN[name]
    net, result = pruned(make, size)
    assert name == "warp" or result.report.removed_channels > 0
    with torch.no_grad():
        for batch, shape in ((1, size), (2, size), (2, other)):
            x = torch.randn(batch, 3, *shape)
            torch.testing.assert_close(result.module(x), net(x), atol=1e-4, rtol=1e-4)


def test_what_the_trace_decides_by_the_examples_sizes_is_told_with_the_users_line() -> None:
    make, size, _ = OPEN["parity"]
    _, result = pruned(make, size)
    (note,) = result.report.notes
    assert note.startswith("the forward decides by sizes (test_image_sizes.py:")


def test_a_size_that_decides_otherwise_is_refused_and_not_computed_wrongly() -> None:
    _, result = pruned(ByParity, (8, 8))
    with pytest.raises(AssertionError, match=r"traced for other sizes.*test_image_sizes.py"):
        result.module(torch.randn(1, 3, 8, 9))


def test_sizes_that_are_written_out_are_those_of_the_original() -> None:
    net, result = pruned(Hard, (8, 16))
    wide = torch.randn(1, 3, 8, 24)
    for network in (net, result.module):
        with torch.no_grad():
            assert network(torch.randn(2, 3, 8, 16)).shape == (8, 2, 5)
            assert network(wide.repeat(2, 1, 1, 1)).shape == net(wide.repeat(2, 1, 1, 1)).shape


class Cells(nn.Module):
    """A head over maps of two strides: each cell is multiplied by a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = block(3, 8, 2), block(8, 8, 2)
        self.heads = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        maps = [self.heads[0](fine), self.heads[1](self.coarse(fine))]
        strides = [torch.full((y.shape[2] * y.shape[3],), s) for y, s in zip(maps, (2.0, 4.0), strict=True)]
        return torch.cat([y.flatten(2) for y in maps], 2) * torch.cat(strides)


def test_constants_that_differ_from_place_to_place_are_computed_at_each_size() -> None:
    torch.manual_seed(0)
    net = Cells().eval()
    nn.init.zeros_(net.fine[1].weight[:4].data)
    found = prune_module(net, (torch.randn(1, 3, 16, 16),))
    assert found.report.removed_channels == 4
    for x in (torch.randn(1, 3, 16, 16), torch.randn(2, 3, 24, 32)):
        torch.testing.assert_close(found.module(x), net(x), rtol=1e-4, atol=1e-5)
