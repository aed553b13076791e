"""Masks by comparison, written in place (``mask[mask < 1] = 0``): each element is by itself, so channels go through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from modules.silent import CHANNELS, ZERO, Spelled, prune
from torch import Tensor
from torch.nn import functional as F


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


@pytest.mark.parametrize("name", MASKS)
def test_channels_go_through_a_mask_written_in_place(name: str) -> None:
    pruned = prune(Spelled(MASKS[name])).module
    assert pruned.get_parameter("tail.weight").shape[1] <= CHANNELS - len(ZERO)


@pytest.mark.parametrize("mask", [_through_a_view, _of_places])
def test_masks_that_others_see_or_that_count_samples_stay_exact(mask: Callable[[Tensor], Tensor]) -> None:
    prune(Spelled(mask))  # which compares the outputs with the original's
