"""Masks by comparison, written in place (``mask[mask < 1] = 0``): each element is by itself, so channels go through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from assertions import assert_same_function
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module


def _thresholded(y: Tensor) -> Tensor:
    z = y.clone()
    z[z < 0.2] = 0
    return z


def _ones_like(y: Tensor) -> Tensor:
    mask = torch.ones_like(y)
    mask[y < 0.2] = 0.0
    return y * mask


def _warped(y: Tensor) -> Tensor:
    """PWC-Net's mask of what a flow moves out of the image."""
    n, _, h, w = y.shape
    grid = F.affine_grid(torch.tensor([[1.0, 0, 0.3], [0, 1, 0]]).expand(n, 2, 3), [n, 1, h, w], align_corners=False)
    mask = F.grid_sample(torch.ones_like(y), grid, align_corners=False)
    mask[mask < 0.9999] = 0
    mask[mask > 0] = 1
    return F.grid_sample(y, grid, align_corners=False) * mask


def _by_another(y: Tensor) -> Tensor:
    far = y.abs() > 0.5
    z = y + 0
    z[far] = 0.5
    return z


def _of_places(y: Tensor) -> Tensor:
    z = y.clone().permute(0, 2, 3, 1)
    z[y.amax((1, 2, 3)) > 0.1] = 0.5
    return z.permute(0, 3, 1, 2)


def _read_before(y: Tensor) -> Tensor:
    z = y * 2
    half = z.mul(0.5)
    z[z.gt(1.0)] = 1.0
    return z + half


def _through_a_view(y: Tensor) -> Tensor:
    """What is written is seen by a view that was there before."""
    z = y * 2
    top = z[:, :, :4]
    z[z > 0.5] = 0.5
    return z + F.pad(top, (0, 0, 0, 4))


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "thresholded": _thresholded,
    "like another": _ones_like,
    "of a warp": _warped,
    "by another map": _by_another,
    "read before": _read_before,
}


class Net(nn.Module):
    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.o = (
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 2, 1),
        )
        self.mask = mask
        with torch.no_grad():
            self.norm.weight[:3] = 0
            self.norm.bias[:3] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.b(self.mask(self.norm(self.a(x))))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MASKS)
def test_channels_go_through_a_mask_written_in_place(name: str) -> None:
    torch.manual_seed(0)
    net, x = Net(MASKS[name]).eval(), torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,))
    assert result.module.get_parameter("b.weight").shape[1] == 5
    assert_same_function(net, result.module, x, torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize("mask", [_through_a_view, _of_places])
def test_masks_that_others_see_or_that_count_samples_stay_exact(mask: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net, x = Net(mask).eval(), torch.randn(2, 3, 8, 8)
    assert_same_function(net, prune_module(net, (x,), validate=False).module, x)
