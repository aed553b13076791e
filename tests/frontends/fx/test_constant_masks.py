"""Masks that stand on the module pick the channels that their content tells, as numbers would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunec.api import prune_module

MASK = [True, False, True, True, False, True, True, False]


class Masked(nn.Module):
    """Of eight channels those three of which two are picked are zero."""

    def __init__(self, pick: Callable[[Masked, Tensor], Tensor], channels: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.pick = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()), pick
        self.register_buffer("mask", torch.tensor(MASK))
        self.register_buffer("weights", torch.tensor(MASK).float())
        self.register_buffer("places", torch.rand(6, 6) > 0.5)
        self.plain = torch.tensor(MASK)
        self.o = nn.Conv2d(channels, 4, 1)
        nn.init.zeros_(self.body[1].weight[2:5].data)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.o(self.pick(self, self.body(x)))
        return made


PICKS: dict[str, Callable[[Masked, Tensor], Tensor]] = {
    "a buffer": lambda net, y: y[:, net.mask],
    "a tensor that is none": lambda net, y: y[:, net.plain],
    "before an ellipsis": lambda net, y: y[:, net.mask, ...],
    "a list": lambda net, y: y[:, MASK],
    "the other ones": lambda net, y: torch.cat([y[:, ~net.mask], y[:, net.mask][:, :2]], 1),
    "numbers compared": lambda net, y: y[:, net.weights > 0.5],
    "nonzero": lambda net, y: y[:, net.mask.nonzero()[:, 0]],
    "where": lambda net, y: y[:, torch.where(net.mask)[0]],
    "index_select": lambda net, y: y.index_select(1, torch.nonzero(net.mask).squeeze(1)),
    "beside a product": lambda net, y: (y * net.weights[:, None, None])[:, net.mask],
}


@pytest.mark.parametrize("name", PICKS)
def test_channels_that_a_mask_picks_go(name: str) -> None:
    net = Masked(PICKS[name]).eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    found = prune_module(net, (torch.randn(1, 3, 6, 6),))
    assert found.report.removed_channels >= 5, "three that are zero, and others that nobody reads"
    for x in (torch.randn(1, 3, 6, 6), torch.randn(3, 3, 8, 6)):
        torch.testing.assert_close(found.module(x), net(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_a_mask_over_positions_is_read() -> None:
    net = Masked(lambda net, y: y[:, :, net.places][:, :, None], 8).eval()
    found, x = prune_module(net, (torch.randn(1, 3, 6, 6),)), torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(found.module(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_mask_that_the_forward_writes_is_not_taken_as_it_is() -> None:
    def pick(net: Masked, y: Tensor) -> Tensor:
        net.mask[7] = True
        net.mask[0] = False
        return y[:, net.mask]

    with pytest.raises(Exception, match="a size depends on values"):
        prune_module(Masked(pick).eval(), (torch.randn(1, 3, 6, 6),))
