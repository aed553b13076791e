"""Writes into a module's own tensors while it is read: none reaches the user's network, none is lost after it."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from assertions import outputs_of, relative_error
from torch import Tensor, nn

from prunec.api import analyze_module, prune_module
from prunec.errors import UntraceableModel


def _block(i: int, o: int) -> nn.Sequential:
    conv, norm = nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o)
    with torch.no_grad():
        norm.weight[: o // 2] = 0
        norm.bias.normal_()
    return nn.Sequential(conv, norm, nn.ReLU())


class Net(nn.Module):
    queue: Tensor
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.o = _block(3, 8), _block(8, 8), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.norm(self.b(self.a(x))))  # type: ignore[no-any-return]  # nn.Module's call is untyped


class CountsOutside(Net):
    """Counts on tensors that are no buffers, and what torch.fx cannot read: torch.export runs it on fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.by_name = torch.zeros(3), {"calls": torch.zeros(())}

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.calls[0] = 3
        self.by_name["calls"] += 1
        y = self.b(self.a(x))
        with torch.no_grad():
            y = y * float(y.mean())
        return self.o(y)  # type: ignore[no-any-return]


class Statistics(Net):
    """Updates a normalisation's statistics by hand, half of it by calls on the buffer alone."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        self.norm.running_mean.mul_(0.9).add_(0.1 * y.mean((0, 2, 3)).detach())  # type: ignore[union-attr]
        return self.o(self.norm(y))  # type: ignore[no-any-return]


class Momentum(Net):
    """MoCo: a queue of features, written where a buffer says."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(2, 16))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        key = super().forward(x).mean((2, 3))
        at = int(self.place)
        self.queue[:, at : at + key.shape[0]] = key.T
        return key @ self.queue.clone()


def test_writes_that_run_for_real_beside_fake_tensors_are_put_back() -> None:
    """An op of real tensors alone runs for real under torch's fake tensors: a batch norm's counter in training mode."""
    torch.manual_seed(0)
    net, x = CountsOutside().eval(), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy([net.state_dict(), net.calls, net.by_name])
    with pytest.raises(UntraceableModel):
        analyze_module(net, (x,))
    torch.testing.assert_close([net.state_dict(), net.calls, net.by_name], before, rtol=0, atol=0)


def test_a_write_into_a_buffer_of_a_layer_is_a_statement_of_the_pruned_network() -> None:
    torch.manual_seed(0)
    net, x = Statistics().eval(), torch.randn(2, 3, 8, 8)
    pruned = prune_module(net, (x,)).module
    assert pruned.get_submodule("a.0").weight.shape[0] < 8
    assert relative_error(outputs_of(net, x), outputs_of(pruned, x)) <= 1e-5
    torch.testing.assert_close(pruned.get_buffer("norm.running_mean"), net.norm.running_mean[-4:])


def test_a_write_at_a_place_that_is_data_is_refused_with_its_line() -> None:
    with pytest.raises(UntraceableModel) as refused:
        prune_module(Momentum().eval(), (torch.randn(2, 3, 8, 8),), validate=False)
    assert re.search(r"test_lost_writes\.py:\d+, in forward", str(refused.value))
