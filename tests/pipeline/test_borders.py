"""Zero padding beside constants: what --border bias gives up, and where it gives up nothing."""

from __future__ import annotations

import torch
from assertions import assert_same_function, outputs_of
from modules.blocks import cbr
from modules.networks import silence
from torch import nn

from prunec.api import prune_module


def bordered() -> nn.Module:
    """Two padded convolutions; half of the channels between them are constant and not zero."""
    torch.manual_seed(0)
    return silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 3, padding=1)))


def test_bias_borders_agree_inside_and_differ_only_at_the_border() -> None:
    net, x = bordered(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = prune_module(net, (x,), border="bias")
    expected, found = outputs_of(net, x)[0], outputs_of(result.module, x)[0]
    difference = (expected - found).abs()
    scale = expected.abs().max()
    assert difference[..., 1:-1, 1:-1].max() <= 1e-5 * scale
    assert difference.max() > 1e-2 * scale
    assert not result.plan.exact
    report = result.report
    assert report.validation is not None
    assert report.border_error == report.validation.max_rel_error > 1e-2
    assert report.carriers == 0


def test_bias_borders_need_no_carrier_and_so_remove_more() -> None:
    net, x = bordered(), torch.randn(2, 3, 16, 16)
    exact, bias = prune_module(net, (x,)), prune_module(net, (x,), border="bias", validate=False)
    assert exact.report.carriers == 1
    assert bias.report.removed_channels == exact.report.removed_channels + 1
    assert_same_function(net, exact.module, x)


def test_bias_borders_are_exact_where_padding_meets_only_zeros() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 3, padding=1)))
    net[0][1].bias.data.abs_().neg_()  # the constants are negative, so ReLU makes them zero
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,), border="bias")
    assert result.plan.exact
    assert result.report.border_error is None
    assert result.report.removed_channels > 0
    assert_same_function(net, result.module, x)
    assert prune_module(net, (x,)).report.carriers == 0


def test_bias_borders_are_exact_without_padding() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,), border="bias")
    assert result.plan.exact
    assert_same_function(net, result.module, x)
