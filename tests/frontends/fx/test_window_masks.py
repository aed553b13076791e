"""Masks that a leaf function of torch.fx fills window by window: they hold no channels, and no export is needed."""

from __future__ import annotations

import pytest
import torch
from assertions import assert_same_function
from torch import Tensor, fx, nn

from prunec.api import prune_module


def masked_windows(y: Tensor) -> Tensor:
    """Return ``y`` where the windows, numbered one by one, are not the first."""
    mask = y.new_zeros(y.shape[-2:])
    for number, (rows, columns) in enumerate([(slice(0, 4), slice(0, 4)), (slice(4, None), slice(0, None))]):
        mask[rows, columns] = number + 1
    return y * (mask.unsqueeze(0) != 1)


fx.wrap("masked_windows")


class Windows(nn.Module):
    """A convolution whose output is masked by windows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(masked_windows(torch.relu(self.first(x))))  # type: ignore[no-any-return]  # nn.Module's call


def test_a_mask_filled_in_place_needs_no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = Windows().eval(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        net.first.weight[::2], net.first.bias[::2] = 0, 0
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("exported"))
    pruned = prune_module(net, (x,))
    assert pruned.report.removed_channels == 4
    assert_same_function(net, pruned.module, x, torch.randn(2, 3, 11, 9), tolerance=1e-5)
