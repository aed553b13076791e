"""γ–W rescaling: the function stays, on every shape of network, and what does not allow it is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from assertions import outputs_of, relative_error
from modules.training import (
    BareShortcut,
    Chain,
    Curved,
    Dense,
    Grouped,
    Inverted,
    ResidualConcat,
    conv_bn,
    trained_like,
)
from torch import nn
from torch.nn import functional as F

from prunec.errors import BadInput, InternalError
from prunec.frontends.fx.frontend import trace
from prunec.ir.ops import OPS
from prunec.models import ARCHITECTURES, build
from prunec.passes.channels import channels
from prunec.passes.rules.scaling import SCALING_RULES
from prunec.passes.sparsity.scaling import Scaling, scalable
from prunec.training.sparsity.rescale import Rescaling

NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "residual-concat": ResidualConcat,
    "dense": Dense,
    "inverted": Inverted,
    "grouped": Grouped,
    "curved": Curved,
}


def scaling_of(module: nn.Module, image: torch.Tensor) -> Scaling:
    graph = trace(module, (image,)).graph
    return scalable(graph, channels(graph))


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> list[str]:
    return [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_rescaling_keeps_the_function(module: nn.Module, image: torch.Tensor, alpha: float) -> Rescaling:
    before, weights = outputs_of(module, image), snapshot(module)
    rescaling = Rescaling.of(module, scaling_of(module, image), alpha)
    rescaling.apply(module, (image,))
    assert changed(weights, module), "nothing was scaled"
    assert relative_error(before, outputs_of(module, image)) <= 1e-5
    return rescaling


@pytest.mark.parametrize("alpha", [0.01, 30.0])
@pytest.mark.parametrize("name", NETS)
def test_rescaling_keeps_the_function(name: str, alpha: float) -> None:
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert_rescaling_keeps_the_function(trained_like(NETS[name]()), image, alpha)


@pytest.mark.parametrize("name", ["digits", "convnet", "resnet20", "resnet56"])
def test_rescaling_keeps_the_function_of_built_in_networks(name: str) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, *ARCHITECTURES[name].input_shape)
    assert_rescaling_keeps_the_function(trained_like(build(name)), image, 0.01)


def test_undo_brings_the_weights_back() -> None:
    module = trained_like(ResidualConcat())
    weights = snapshot(module)
    assert_rescaling_keeps_the_function(module, torch.randn(2, 3, 8, 8), 0.001).undo()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, weights[name], msg=name)


def test_gammas_are_scaled_and_zeros_stay_zero() -> None:
    module = trained_like(ResidualConcat())
    gamma = module.get_parameter("stem.1.weight")
    with torch.no_grad():
        gamma[3] = 0.0
    before = gamma.detach().clone()
    rescaling = assert_rescaling_keeps_the_function(module, torch.randn(2, 3, 8, 8), 0.1)
    torch.testing.assert_close(gamma.detach(), before * 0.1)
    rescaling.undo()
    assert gamma[3] == 0.0


def test_a_sigmoid_blocks_and_is_named_while_the_next_layer_is_scaled() -> None:
    module = Curved()
    scaling = scaling_of(module, torch.zeros(2, 3, 8, 8))
    assert [source.param for source in scaling.sources] == ["straight.1.weight"]
    assert [(blocked.node.op, blocked.classes.size) for blocked in scaling.blocked] == [("sigmoid", 4)]


def test_relu6_blocks_and_is_named() -> None:
    scaling = scaling_of(Inverted(), torch.zeros(2, 3, 8, 8))
    assert "depthwise.1.weight" not in {source.param for source in scaling.sources}
    assert {blocked.node.op for blocked in scaling.blocked} == {"clip"}


def test_a_residual_class_with_a_bare_producer_is_left_alone() -> None:
    module = BareShortcut()
    graph = trace(module, (torch.zeros(2, 3, 8, 8),)).graph
    classes = channels(graph)
    # Asked for outright, the class meets an unscaled operand at the sum.
    scaling = scalable(graph, classes, wanted=classes.is_channel & ~classes.pinned)
    assert scaling.sources == ()
    assert {blocked.node.op for blocked in scaling.blocked} == {"add"}


def test_a_weight_with_a_second_use_blocks() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.shared = conv_bn(3, 4), conv_bn(3, 4), nn.Conv2d(4, 2, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            curved = self.shared(torch.sigmoid(self.a(x)))
            out: torch.Tensor = curved + self.shared(F.relu(self.b(x)))
            return out

    assert scaling_of(Tied(), torch.zeros(2, 3, 8, 8)).sources == ()


def test_a_computed_weight_blocks() -> None:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv_bn(3, 4), nn.Conv2d(4, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.second.weight - self.second.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(F.relu(self.first(x)), weight, self.second.bias)

    module = trained_like(Standardised())
    image = torch.randn(2, 3, 8, 8)
    scaling = scaling_of(module, image)
    before = outputs_of(module, image)
    Rescaling.of(module, scaling, 0.01).apply(module, (image,))
    assert relative_error(before, outputs_of(module, image)) <= 1e-5


def test_a_change_of_the_function_is_caught_and_taken_back() -> None:
    module = trained_like(Chain())
    weights = snapshot(module)
    scaling = scaling_of(module, torch.zeros(2, 3, 8, 8))
    broken = Scaling(scaling.scaled, scaling.sources, scaling.reads[:1], scaling.blocked)
    with pytest.raises(InternalError, match="changed the outputs"):
        Rescaling.of(module, broken, 0.5).apply(module, (torch.zeros(2, 3, 8, 8),))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, weights[name], msg=name)


def test_outputs_that_are_no_numbers_any_more_are_a_change_of_the_function() -> None:
    class Overflowing(nn.Module):
        """Gives no numbers where the network's are large."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Chain()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.net(x)
            return torch.where(scores.abs() > 50, torch.nan, scores)

    module = Overflowing().eval()
    scaling = scaling_of(module.net, torch.zeros(2, 3, 8, 8))
    broken = Scaling(scaling.scaled, scaling.sources, scaling.reads[:1], scaling.blocked)
    rescaling = Rescaling.of(module.net, broken, 1e3)
    with pytest.raises(InternalError, match="changed the outputs by nan"):
        rescaling.apply(module, (torch.zeros(2, 3, 8, 8),))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf")])
def test_an_alpha_that_is_no_factor_is_refused(alpha: float) -> None:
    with pytest.raises(BadInput, match="alpha is"):
        Rescaling.of(Chain(), scaling_of(Chain(), torch.zeros(2, 3, 8, 8)), alpha)


def test_the_table_has_a_row_for_every_op() -> None:
    assert set(SCALING_RULES) == set(OPS)
