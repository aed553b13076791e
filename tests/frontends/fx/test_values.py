"""Forwards that look at values: followed where no answer changes the network, else refused with the user's line."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from assertions import assert_same_function, in_time
from modules.blocks import cbr
from modules.networks import silence
from torch import Tensor, nn

from prunec.api import analyze_module, prune_module
from prunec.errors import UntraceableModel

LOG = logging.getLogger("somebody's")


class Looking(nn.Module):
    """Two blocks, and a function of the user's between them."""

    def __init__(self, looks: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 8), cbr(8, 8), nn.Conv2d(8, 2, 1)
        self.looks, self.seen = looks, {"n": 0.0}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.looks(self, self.a(x))))
        return out


def _item(_: Any, y: Tensor) -> Tensor:
    LOG.debug("mean %f", y.mean().item())
    return y


def _float(net: Any, y: Tensor) -> Tensor:
    net.seen["mean"] = float(y.mean())
    net.seen["average"] = 0.9 * net.seen["n"] + 0.1 * y.abs().mean().item()
    return y


def _format(_: Any, y: Tensor) -> Tensor:
    LOG.info(f"{tuple(y.shape)}, {len(y.shape)} axes, {y.mean().item():.3f}, {y.mean():.2e}")
    return y


def _array(net: Any, y: Tensor) -> Tensor:
    net.seen["array"] = y.detach().cpu().numpy()
    return y


def _checked(_: Any, y: Tensor) -> Tensor:
    if torch.isnan(y).any():
        raise ValueError("nan")
    assert torch.isfinite(y).all(), "not finite"
    return y


def _must_be_finite(_: Any, y: Tensor) -> Tensor:
    if not torch.isfinite(y).all():
        raise ValueError("not finite")
    return y


def _warned(_: Any, y: Tensor) -> Tensor:
    largest = y.detach().abs().max().item()
    if largest > 1e4 or math.isnan(largest):
        warnings.warn(f"large: {largest:.1f}", stacklevel=2)
    return y


FOLLOWED = {f.__name__: f for f in (_item, _float, _format, _array, _checked, _must_be_finite, _warned)}


@pytest.mark.parametrize("name", FOLLOWED)
def test_values_that_are_logged_or_checked_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    net = silence(Looking(FOLLOWED[name]))
    plain = silence(Looking(lambda _, y: y))
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,), validate=False)
    assert result.report.removed_channels == prune_module(plain, (x,), validate=False).report.removed_channels > 0
    assert not any("torch.export" in note for note in result.report.notes)
    assert_same_function(net, result.module, x, torch.randn(3, 3, 24, 20))
    asks = name not in ("_item", "_array")
    assert any("looks at values (test_values.py:" in note for note in result.report.notes) == asks
    assert set(net.seen) == {"n"} or net.seen.pop("mean", 0.0) is not None  # what the comparison ran


def _branch(_: Any, y: Tensor) -> Tensor:
    return y * 2 if y.mean() > 0 else y


def _scale(_: Any, y: Tensor) -> Tensor:
    return y / float(y.abs().max())


def _constant(_: Any, y: Tensor) -> Tensor:
    return y * torch.tensor(float(y.mean()))


def _both(_: Any, y: Tensor) -> Tensor:
    large = bool(y.max() > 5)
    return y * 2 if y.min() < -5 and large else y


def _loop(_: Any, y: Tensor) -> Tensor:
    error = 1.0
    while error > 1e-3:
        y = y * 0.5
        error = float(y.norm())
    return y


def _count(_: Any, y: Tensor) -> Tensor:
    for _step in range(int((y > 0).sum())):
        y = y * 0.99
    return y


def _many(_: Any, y: Tensor) -> Tensor:
    return y * 2 if int((y > 0).sum()) > 100 else y


def _between(_: Any, y: Tensor) -> Tensor:
    return y * 2 if 10 < float(y.max()) < 1000 else y


@pytest.mark.parametrize("looks", [_branch, _scale, _constant, _both, _loop, _count, _many, _between])
def test_values_that_decide_are_refused_with_the_users_line(looks: Callable[..., Tensor]) -> None:
    with in_time(60), pytest.raises(UntraceableModel) as refused:
        analyze_module(Looking(looks).eval(), (torch.randn(2, 3, 8, 8),))
    assert "decides by values of tensors (test_values.py:" in refused.value.what
    assert "torch.where" in refused.value.do


def test_checks_after_every_layer_end() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([cbr(3, 8), *(cbr(8, 8) for _ in range(60))])
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
                if torch.isnan(x).any() or torch.isinf(x).any():
                    raise ValueError("not a number")
            out: Tensor = self.head(x)
            return out

    with in_time(60), pytest.raises(UntraceableModel, match=r"decides by values of tensors \(test_values\.py:"):
        analyze_module(Deep().eval(), (torch.randn(2, 3, 8, 8),))
