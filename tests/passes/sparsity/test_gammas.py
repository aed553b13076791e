"""gammas: which BatchNorm scales decide over which channel classes, and which of those can go."""

from __future__ import annotations

import numpy as np
import torch
from modules.training import BareShortcut, Chain, Curved, Dense, Grouped, Inverted, ResidualConcat, conv_bn
from torch import nn
from torch.nn import functional as F

from prunec.frontends.fx.frontend import trace
from prunec.ir.labels import ChannelClasses
from prunec.passes.channels import channels
from prunec.passes.sparsity.gammas import Gamma, gammas, residual_classes


def find(module: nn.Module, size: int = 8) -> tuple[dict[str, Gamma], ChannelClasses]:
    graph = trace(module, (torch.zeros(2, 3, size, size),)).graph
    classes = channels(graph)
    return {gamma.param: gamma for gamma in gammas(graph, classes)}, classes


def test_every_gamma_of_a_chain_decides_and_can_go() -> None:
    found, _ = find(Chain())
    assert list(found) == ["first.1.weight", "second.1.weight"]
    assert [gamma.beta for gamma in found.values()] == ["first.1.bias", "second.1.bias"]
    assert all(gamma.prunable.all() for gamma in found.values())


def test_gammas_of_a_residual_stream_share_their_classes() -> None:
    found, classes = find(ResidualConcat())
    assert np.array_equal(found["stem.1.weight"].classes, found["outer.1.weight"].classes)
    assert not set(found["inner.1.weight"].classes) & set(found["stem.1.weight"].classes)
    graph = trace(ResidualConcat(), (torch.zeros(2, 3, 8, 8),)).graph
    assert set(np.flatnonzero(residual_classes(graph, classes))) == set(found["stem.1.weight"].classes)


def test_a_norm_that_only_other_norms_read_does_not_decide() -> None:
    found, _ = find(Dense())
    assert not found["stem.1.weight"].decides.any()
    for name, parts in (("norm1.weight", 4), ("norm2.weight", 7), ("norm3.weight", 10)):
        assert found[name].prunable.sum() == parts, name


def test_the_norm_behind_a_depthwise_convolution_decides_for_the_one_before() -> None:
    found, _ = find(Inverted())
    assert not found["expand.1.weight"].decides.any()
    assert found["depthwise.1.weight"].prunable.all()
    assert np.array_equal(found["expand.1.weight"].classes, found["depthwise.1.weight"].classes)


def test_a_gate_leaves_the_gated_classes_prunable() -> None:
    found, _ = find(Grouped())
    assert found["grouped.1.weight"].prunable.all()


def test_channels_that_reach_the_output_are_not_prunable() -> None:
    found, _ = find(nn.Sequential(conv_bn(3, 4), nn.ReLU()))
    assert not found["0.1.weight"].prunable.any()


def test_a_class_with_a_producer_that_has_no_gamma_is_not_prunable() -> None:
    found, _ = find(BareShortcut())
    assert found["normed.1.weight"].decides.all()
    assert not found["normed.1.weight"].prunable.any()


def test_a_shared_norm_is_listed_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = torch.cat((self.norm(self.a(x)), self.norm(self.b(x))), dim=1)
            out: torch.Tensor = self.head(F.relu(both))
            return out

    found, _ = find(Shared())
    assert list(found) == ["norm.weight"]
    assert found["norm.weight"].prunable.all()


def test_any_activation_keeps_a_constant_constant() -> None:
    found, _ = find(Curved())
    assert found["bent.1.weight"].prunable.all()


def test_a_norm_without_gamma_is_not_listed() -> None:
    found, _ = find(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)))
    assert found == {}
