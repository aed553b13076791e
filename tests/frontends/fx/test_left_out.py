"""Arguments that the example leaves at their defaults: fixed there, under their own names, in saved modules too."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, fx, nn

import prunec

X = torch.randn(2, 3, 12, 12)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.o = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        y = self.a(x) * scale
        return self.o(y if mask is None else y * mask)  # type: ignore[no-any-return]  # nn.Module's call is untyped


@pytest.fixture
def pruned() -> nn.Module:
    return prunec.prune_module(Masked().eval(), (X,), criterion="l1", target_macs=0.5).module


def test_they_may_be_given_by_name_as_they_are(pruned: nn.Module) -> None:
    assert torch.equal(pruned(X, mask=None, scale=2.0), pruned(X))


@pytest.mark.parametrize("other", [{"mask": torch.zeros(1)}, {"scale": 3.0}])
def test_other_values_are_refused(pruned: nn.Module, other: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match="has been specialized to have value"):
        pruned(X, **other)


def test_a_saved_module_does_not_spoil_torch_fx_for_the_next(pruned: nn.Module) -> None:
    """torch.fx looks for a helper of its own in the wrong place, once a saved module has been read that calls it."""
    loaded = pickle.loads(pickle.dumps(pruned))  # written a moment ago
    assert torch.equal(loaded(X), pruned(X))
    with pytest.raises(AssertionError, match="has been specialized to have value None"):
        loaded(X, mask=torch.ones(1))
    fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert prunec.prune_module(loaded, (X,), criterion="l1", target_macs=0.5).report.removed_channels > 0
