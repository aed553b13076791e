"""Forwards that keep what they made for the last input's sizes: pruned networks make it for each input's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import Pruned, prune_module


class Remembering(nn.Module):
    """A convolution half of whose channels go, and a head that remembers."""

    def __init__(self, head: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.o, self.head = nn.Conv2d(8, 4, 1), head()
        nn.init.zeros_(self.body[1].weight[:4].data)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.o(self.body(x)))
        return y


class Anchors(nn.Module):
    """YOLOv8's: the whole shape is compared, with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: torch.Size | None = None
        self.anchors = torch.empty(0)

    def forward(self, y: Tensor) -> Tensor:
        shape = y.shape
        if self.shape != shape:
            rows, columns = torch.meshgrid(torch.arange(shape[2]) + 0.5, torch.arange(shape[3]) + 0.5, indexing="ij")
            self.anchors = torch.stack((columns, rows)).flatten(1)
            self.shape = shape
        return torch.cat((y[:, :2].flatten(2) + self.anchors, y[:, 2:].flatten(2)), 1)


class Grids(nn.Module):
    """YOLOv5's: a list of grids, whose own shape is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.grids = [torch.empty(0)]

    def forward(self, y: Tensor) -> Tensor:
        batch, _, height, width = y.shape
        y = y.view(batch, 2, 2, height, width).permute(0, 1, 3, 4, 2)
        if self.grids[0].shape[2:4] != y.shape[2:4]:
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            self.grids[0] = torch.stack((columns, rows), 2).view(1, 1, height, width, 2).float()
        return y.sigmoid() + self.grids[0]


class Position(nn.Module):
    """An encoding for one height and width, two numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.height = self.width = 0
        self.made: Tensor | None = None

    def forward(self, y: Tensor) -> Tensor:
        height, width = y.size()[-2:]
        if self.made is None or self.height != height or self.width != width:
            self.height, self.width = height, width
            self.made = torch.arange(height, dtype=torch.float32)[:, None] * 0.1 + torch.arange(width)
        return y + self.made


class Early(nn.Module):
    """The other way round: what is there is returned at once."""

    def __init__(self) -> None:
        super().__init__()
        self.of: tuple[int, int] | None = None
        self.mask = torch.empty(0)

    def made(self, height: int, width: int) -> Tensor:
        if self.of == (height, width):
            return self.mask
        self.of, self.mask = (height, width), torch.ones(height, width).tril()
        return self.mask

    def forward(self, y: Tensor) -> Tensor:
        return y * self.made(*y.shape[2:])


CACHES: dict[str, Callable[[], nn.Module]] = {
    "anchors": Anchors,
    "grids": Grids,
    "position": Position,
    "early": Early,
}
BEFORE = {"fresh": None, "the example's": (1, 16, 16), "another batch": (2, 16, 16), "other sizes": (1, 24, 24)}


def pruned(net: nn.Module) -> Pruned:
    found = prune_module(net, (torch.randn(1, 3, 16, 16),))
    assert found.report.removed_channels == 4
    return found


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", CACHES)
def test_what_is_kept_for_the_last_sizes_is_made_for_each(name: str, before: str) -> None:
    net, seen = Remembering(CACHES[name]).eval(), BEFORE[before]
    if seen is not None:
        net(torch.randn(seen[0], 3, *seen[1:]))
    memory = {**vars(net.head)}
    found = pruned(net)
    assert all(vars(net.head)[key] is value for key, value in memory.items())
    assert not found.report.notes
    for batch, height, width in ((1, 16, 16), (2, 16, 16), (3, 24, 24), (1, 16, 32), (1, 16, 16)):
        x = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(found.module(x), net(x), rtol=1e-4, atol=1e-5)


class LastMap(Anchors):
    """What it keeps is made of values: it is no memory of sizes."""

    def forward(self, y: Tensor) -> Tensor:
        if self.shape != y.shape:
            self.anchors, self.shape = y.detach(), y.shape
        return y - self.anchors


class Noise(Anchors):
    def forward(self, y: Tensor) -> Tensor:
        if self.shape != y.shape:
            self.anchors, self.shape = torch.randn(y.shape), y.shape
        return y + self.anchors


class Resized(nn.Module):
    """A size that it was made for is no memory: at that one the table is taken as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.sizes = nn.Parameter(torch.randn(1, 4, 8, 8)), (8, 8)

    def forward(self, y: Tensor) -> Tensor:
        if self.sizes != y.shape[2:]:
            return y + F.interpolate(self.table, size=y.shape[2:], mode="bicubic", antialias=True)
        return y + self.table


@pytest.mark.parametrize("head", [LastMap, Noise, Resized])
def test_what_depends_on_more_than_sizes_is_refused_at_other_sizes(head: Callable[[], nn.Module]) -> None:
    net, x = Remembering(head).eval(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        net(x)
    found = pruned(net)
    with pytest.raises(Exception, match="traced for other sizes"):
        found.module(torch.randn(1, 3, 24, 24))


class Dicts(Anchors):
    """What it returns is a dict, made anew in each run."""

    def forward(self, y: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"boxes": super().forward(y), "maps": y}


def test_a_head_that_returns_a_dict_is_followed_too() -> None:
    class Whole(Remembering):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            made: dict[str, Tensor] = self.head(self.o(self.body(x)))
            return made

    net = Whole(Dicts).eval()
    net(torch.randn(2, 3, 16, 16))
    found, x = pruned(net), torch.randn(3, 3, 24, 16)
    torch.testing.assert_close(found.module(x), net(x), rtol=1e-4, atol=1e-5)
