"""Data on which a network computes NaN or infinity, or the pruned one does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunec
from prunec.errors import BadInput
from tests.modules.blocks import Head, cbr

X = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
HOW: dict[str, Any] = {"target_macs": 0.6, "validate": False}


class Standardised(nn.Module):
    """Divides each image by its deviation: NaN on one of one color."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(cbr(3, 8), cbr(8, 12), Head(12))

    def forward(self, x: Tensor) -> Any:
        return self.net((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


class Root(nn.Module):
    """The root of something positive, which need not stay so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(cbr(3, 8), cbr(8, 12), Head(12)).eval()
        with torch.no_grad():
            self.register_buffer("low", self.net(torch.from_numpy(X)).amin(0) - 0.01)

    def forward(self, x: Tensor) -> Any:
        return torch.sqrt(self.net(x) - self.low)


@pytest.mark.parametrize("at", [4, 38])
@pytest.mark.parametrize("fill", [0.0, 1e30])
def test_a_network_that_gives_no_number_on_a_sample_is_refused_by_name(at: int, fill: float) -> None:
    x = X.copy()
    x[at] = fill
    with pytest.raises(BadInput, match="computes NaN or infinity") as found:
        prunec.prune_module(Standardised().eval(), (torch.randn(2, 3, 8, 8),), calibration=x, **HOW)
    assert "images of one color" in str(found.value)


def test_numbers_that_only_the_pruned_network_lacks_are_counted() -> None:
    how = {**HOW, "target_macs": 0.3, "criterion": "l1", "compensate": False}
    report = prunec.prune_module(Root(), (torch.from_numpy(X[:2]),), calibration=X, **how).report
    assert report.agreement is not None
    assert report.agreement.outputs[0].not_finite > 0
    assert any("NaN or infinity where the original does not, in " in note for note in report.notes)
    assert not any("positions" in note for note in report.notes)


def test_one_sample_does_not_show_what_is_constant() -> None:
    with pytest.raises(BadInput, match="one sample does not show"):
        prunec.prune_module(Root(), (torch.from_numpy(X[:2]),), calibration=X[:1])
