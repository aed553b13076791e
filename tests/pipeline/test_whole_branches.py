"""Branches that became constant as a whole: they vanish, or leave a stored vector."""

from __future__ import annotations

import torch
from assertions import assert_same_function, parameter_elements
from modules.blocks import Basic, Head, cbr
from modules.networks import NETWORKS, make, silence
from torch import nn

from prunec.api import prune_module


def calls(module: nn.Module) -> set[str]:
    assert isinstance(module, torch.fx.GraphModule)
    return {str(n.target) for n in module.graph.nodes if n.op == "call_module"}


def test_a_residual_block_with_zero_initialised_last_gammas_vanishes() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), Basic(8, 8), Basic(8, 8), Head(8)), 0.0)
    nn.init.zeros_(net[1].bn2.weight)
    nn.init.zeros_(net[1].bn2.bias)
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,))
    assert not any(target.startswith("1.") for target in calls(result.module))
    assert any(target.startswith("2.") for target in calls(result.module))
    assert [n for n, _ in result.module.named_parameters() if n.startswith("1.")] == []
    layers = {layer.node: layer.after for layer in result.report.layers}
    assert layers["_1_conv1"] == layers["_1_conv2"] == 0
    assert_same_function(net, result.module, x, torch.randn(1, 3, 21, 21))


def test_a_constant_branch_with_other_betas_becomes_a_stored_vector() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), Basic(8, 8), Head(8)), 0.0)
    nn.init.zeros_(net[1].bn2.weight)
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,))
    assert not any(target.startswith("1.") for target in calls(result.module))
    assert parameter_elements(result.module) == parameter_elements(net[0]) + parameter_elements(net[2])
    assert_same_function(net, result.module, x, torch.randn(1, 3, 21, 21))


def test_an_inception_branch_that_is_constant_leaves_the_concat() -> None:
    net = make("googlenet", 0.0)
    for branch in (net[2].five, net[2].pool):
        nn.init.zeros_(branch[-1][1].weight)
        branch[-1][1].bias.data.abs_().neg_()  # dead after ReLU
    x = NETWORKS["googlenet"].inputs()[0]
    result = prune_module(net, (x,))
    assert not any(target.startswith(("2.five", "2.pool")) for target in calls(result.module))
    assert_same_function(net, result.module, x, torch.randn(1, 3, 22, 22))


def test_a_network_whose_every_gamma_is_zero_still_runs() -> None:
    net = make("resnet20", 1.0)
    x = NETWORKS["resnet20"].inputs()[0]
    result = prune_module(net, (x,))
    assert_same_function(net, result.module, x)
    assert result.report.after.params < 0.02 * result.report.before.params
