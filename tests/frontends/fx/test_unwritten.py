"""Traced networks have no Python code until they are called: calls and copies are as torch.fx's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from prunec.frontends.fx.frontend import trace


class _Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        y += 1  # a rewrite of the graph, too
        return y


def _traced() -> tuple[nn.Module, fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    module, x = _Adds().eval(), torch.randn(2, 3, 5, 5)
    return module, trace(module, (x,)).module, x


def test_a_traced_network_is_written_when_it_is_called() -> None:
    module, traced, x = _traced()
    assert "_code" not in vars(traced)
    torch.testing.assert_close(traced(x), module(x), rtol=0, atol=0)
    assert "self.conv" in traced.code
    assert type(traced).forward.__code__.co_varnames[:2] == ("self", "x")


def test_copies_of_an_unwritten_network_are_called_as_it_is() -> None:
    module, traced, x = _traced()
    for other in (copy.deepcopy(traced), copy.copy(traced)):
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
