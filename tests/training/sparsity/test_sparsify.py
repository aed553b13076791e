"""sparsify: which gammas it penalises, that training with it prunes, and what the network would be if pruned now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from modules.training import Chain, Dense, Inverted, ResidualConcat, without_norms
from torch import nn
from torch.nn import functional as F

from prunec import prune_module
from prunec.errors import BadInput, EmptyNetwork
from prunec.models import ARCHITECTURES, build, count_parameters
from prunec.passes.channels import channels
from prunec.pipeline.reading import read_module
from prunec.training import Ista, sparsify
from prunec.training.budget.footprint import check_alive, keep_mask, size_under, zero_gammas
from prunec.training.sparsity.sparsify import Residual, Sparsity, gamma_values, plan_sparsity

IMAGE = torch.zeros(2, 3, 8, 8)
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def wrapped(module: nn.Module, residual: Residual = "group", keep: tuple[str, ...] = ()) -> Ista:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return sparsify(module, (IMAGE,), optimizer, rho=0.1, residual=residual, keep=keep)


def penalised(module: nn.Module, ista: Ista) -> set[str]:
    ids = {id(parameter) for parameter in ista.param_groups[-1]["params"]}
    return {name for name, parameter in module.named_parameters() if id(parameter) in ids}


def plan_of(module: nn.Module) -> Sparsity:
    graph = read_module(module, (IMAGE,)).graph
    return plan_sparsity(graph, channels(graph), module)


def test_all_prunable_gammas_are_penalised() -> None:
    module = ResidualConcat()
    names = {"stem.1.weight", "inner.1.weight", "outer.1.weight", "left.1.weight", "right.1.weight"}
    assert penalised(module, wrapped(module)) == names


def test_an_optimiser_that_is_wrapped_already_is_refused() -> None:
    module = ResidualConcat()
    ista = wrapped(module)
    with pytest.raises(BadInput, match="drives gammas to zero already"):
        sparsify(module, (IMAGE,), ista, rho=0.1)
    assert len(ista.param_groups[-1]["params"]) == 5


def test_residual_keep_leaves_streams_alone() -> None:
    module = ResidualConcat()
    assert penalised(module, wrapped(module, "keep")) == {"inner.1.weight", "left.1.weight", "right.1.weight"}


def test_the_papers_resnet_20_has_nine_inner_gammas() -> None:
    module = build("resnet20")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    ista = sparsify(module, ARCHITECTURES["resnet20"].example_inputs(), optimizer, rho=0.1, residual="keep")
    assert len(penalised(module, ista)) == 9


def test_kept_layers_are_left_alone() -> None:
    module = ResidualConcat()
    assert "left.1.weight" not in penalised(module, wrapped(module, keep=("left.*",)))


def test_a_norm_that_decides_nothing_is_not_penalised() -> None:
    dense, inverted = Dense(), Inverted()
    assert "stem.1.weight" not in penalised(dense, wrapped(dense))
    assert "expand.1.weight" not in penalised(inverted, wrapped(inverted))


def test_a_frozen_gamma_frees_its_whole_class_of_the_penalty() -> None:
    module = ResidualConcat()
    module.stem[1].weight.requires_grad_(False)
    assert penalised(module, wrapped(module)) == {"inner.1.weight", "left.1.weight", "right.1.weight"}


def test_a_network_without_norms_is_refused_with_the_reason() -> None:
    with pytest.raises(BadInput, match="no channel of the network can be trained away") as error:
        wrapped(without_norms())
    assert "no BatchNorm" in error.value.why


def test_training_in_an_ordinary_loop_makes_channels_go() -> None:
    torch.manual_seed(0)
    module = ResidualConcat()
    ista = wrapped(module)
    images, labels = torch.randn(64, 3, 8, 8), torch.arange(64) % 2
    for _ in range(30):
        ista.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        ista.step()
    assert 0.1 < float(ista.sparsity()) < 1
    pruned = prune_module(module, (IMAGE,))
    assert count_parameters(pruned.module) < 0.9 * count_parameters(module)


def zeroed(module: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Set a share of each class's gammas to zero, and betas to something."""
    rng = np.random.default_rng(seed)
    plan = plan_of(module)
    gone = rng.random(plan.classes.num_classes) < share
    with torch.no_grad():
        for gamma in plan.gammas:
            parameter = module.get_parameter(gamma.param)
            parameter[torch.from_numpy(gone[gamma.classes] & plan.channels_of(gamma))] = 0.0
            module.get_parameter(gamma.beta).normal_(0, 0.3)
    return module


@pytest.mark.parametrize("make", [Chain, ResidualConcat, Dense], ids=["chain", "residual-concat", "dense"])
def test_the_size_if_pruned_now_is_what_removal_gives(make: type[nn.Module]) -> None:
    module = zeroed(make(), 0.4).eval()
    plan = plan_of(module)
    keep = keep_mask(plan, zero_gammas(plan, gamma_values(plan, module)))
    assert not keep.all()
    size = size_under(plan.graph, plan.classes, keep)
    report = prune_module(module, (IMAGE,), border="bias").report
    # Removal may add a bias where constants end at a convolution that has none and no BatchNorm behind it.
    assert size.macs == report.after.macs
    assert size.params <= report.after.params <= size.params + 20


def test_a_class_with_one_living_gamma_is_kept() -> None:
    module = ResidualConcat()
    with torch.no_grad():
        module.stem[1].weight.zero_()
    plan = plan_of(module)
    keep = keep_mask(plan, zero_gammas(plan, gamma_values(plan, module)))
    assert keep.all()


def assert_alive(module: nn.Module) -> None:
    plan = plan_of(module)
    check_alive(plan.graph, plan.classes, keep_mask(plan, zero_gammas(plan, gamma_values(plan, module))), rho=0.5)


def test_a_layer_that_a_shortcut_leads_around_may_vanish() -> None:
    module = ResidualConcat()
    with torch.no_grad():
        module.inner[1].weight.zero_()
    assert_alive(module)


def test_one_of_two_concatenated_branches_may_vanish() -> None:
    module = ResidualConcat()
    with torch.no_grad():
        module.left[1].weight.zero_()
    assert_alive(module)


@pytest.mark.parametrize(
    ("names", "layer"), [(("stem", "outer"), "left"), (("left", "right"), "head")], ids=["stream", "both-branches"]
)
def test_a_network_whose_output_no_longer_depends_on_its_input_is_refused(names: tuple[str, ...], layer: str) -> None:
    module = ResidualConcat()
    with torch.no_grad():
        for name in names:
            module.get_parameter(f"{name}.1.weight").zero_()
    with pytest.raises(EmptyNetwork, match=f"in front of {layer}") as error:
        assert_alive(module)
    assert "0.125" in error.value.do
