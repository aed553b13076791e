"""Sums and means over channels, as in global response normalisation (ConvNeXt V2): zeros can leave them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from masking import Masked
from modules.silent import CHANNELS, ZERO, Spelled, prune
from onnx_models import nets as onnx_nets
from torch import Tensor, nn

from prunec.api import prune_module
from prunec.backends.fx.backend import apply_edits
from prunec.errors import UnsupportedModel
from prunec.ir.plan import PrunePlan
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.budget import Target, select_budget
from prunec.passes.selection.criteria import score
from prunec.passes.selection.select import plan
from prunec.pipeline.export import export_checked
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import input_specs, read_module
from prunec.toolchain.models import apply_plan


class LastAxis(nn.Module):
    """The paper's code: channels are the last axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(1, 1, 1, size)) for _ in range(2))

    def norms(self, x: Tensor) -> Tensor:
        return torch.norm(x, p=2, dim=(1, 2), keepdim=True)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        norms = self.norms(x)
        return self.gamma * (x * (norms / (norms.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class ByPower(LastAxis):
    """timm's: x.norm, and addcmul."""

    def forward(self, x: Tensor) -> Tensor:
        norms = x.norm(p=2, dim=(1, 2), keepdim=True)
        scaled = x * (norms / (norms.mean(dim=-1, keepdim=True) + 1e-6))
        return x + torch.addcmul(self.beta, self.gamma, scaled)


class BySquares(LastAxis):
    """By hand: the root of a sum of squares."""

    def norms(self, x: Tensor) -> Tensor:
        return (x * x).sum((1, 2), keepdim=True).sqrt()


class Net(nn.Module):
    """A block of ConvNeXt V2 between two convolutions; six of its hidden channels are zero."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.up, self.grn, self.down = nn.LayerNorm(8), nn.Linear(8, 32), norm(32), nn.Linear(32, 8)
        self.a, self.b, self.o = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.up.weight[:6] = 0
            self.up.bias[:6] = 0
            self.b.weight[:4] = 0
            self.b.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.down(self.grn(torch.nn.functional.gelu(self.up(y))))
        return self.o(torch.relu(self.b(self.a(x + y.permute(0, 3, 1, 2)))))  # type: ignore[no-any-return]


def averaged(together: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a network of channels taken together: one map by a mean, a sum or a norm over them."""
    return Spelled(lambda y: y * torch.sigmoid(together(y)))


TOGETHER: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda y: y.mean(1, keepdim=True),
    "mean without its axis": lambda y: torch.mean(y, 1).unsqueeze(1),
    "mean over space too": lambda y: y.mean((1, 2, 3), keepdim=True),
    "sum": lambda y: y.sum(dim=1, keepdim=True),
    "norm": lambda y: torch.norm(y, dim=1, keepdim=True),
    "sum of magnitudes": lambda y: torch.linalg.vector_norm(y, 1, dim=1, keepdim=True),
    "normalised": lambda y: nn.functional.normalize(y, dim=1),
    "root mean square": lambda y: (y.pow(2).mean(1, keepdim=True) + 1e-3).rsqrt(),
}


@pytest.mark.parametrize("norm", [LastAxis, ByPower, BySquares])
def test_channels_of_zeros_leave_a_global_response_normalisation(
    norm: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = Net(norm).eval(), torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,))
    assert result.module.get_parameter("up.weight").shape[0] == 26
    torch.testing.assert_close(result.module(x), net(x), atol=1e-5, rtol=1e-5)
    again = apply_plan(Net(norm).eval(), PrunePlan.from_json(result.plan.to_json()))
    again.load_state_dict(result.module.state_dict())
    torch.testing.assert_close(again(x), result.module(x))
    with pytest.raises(UnsupportedModel, match="mean over channels of which some were removed"):
        apply_plan(Net(norm).eval(), result.plan, keep_class=True)
    assert export_checked(result.module, (x,), tmp_path / "net.onnx", original=net).passed


@pytest.mark.parametrize("name", TOGETHER)
def test_channels_of_zeros_leave_what_sums_over_them(name: str) -> None:
    pruned = prune(averaged(TOGETHER[name])).module
    assert pruned.get_parameter("tail.weight").shape[1] == CHANNELS - len(ZERO)


@pytest.mark.parametrize(
    "make", [partial(Net, LastAxis), *(partial(averaged, together) for together in TOGETHER.values())]
)
def test_a_budget_computes_what_the_masked_network_does(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = make().double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    traced = read_module(net, (x,))
    facts = gather_facts(traced.graph)
    selection = select_budget(facts, score(facts, "l1"), Target(params=0.6))
    made = plan(facts, selection, input_specs(traced.graph, (x,)))
    pruned = apply_edits(traced, lower(traced.graph, facts.classes, made, facts.constants))
    with torch.no_grad():
        torch.testing.assert_close(Masked(traced, facts, selection.keep).run(x), pruned(x), atol=1e-9, rtol=1e-9)


def test_a_normalisation_by_hand_keeps_its_channels_and_is_named() -> None:
    """X - mean(x) of a channel of zeros is not zero: its variance is no sum that zeros can leave."""

    def by_hand(y: Tensor) -> Tensor:
        centred = y - y.mean(1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-5)

    result = prune(averaged(by_hand))
    assert result.module.get_parameter("tail.weight").shape[1] == CHANNELS
    assert ("mean runs over its channels", CHANNELS) in {(pin.reason, pin.channels) for pin in result.report.pins}


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum", "ReduceL2", "ReduceL1", "ReduceSumSquare"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_channels_of_zeros_leave_the_sums_of_files(kind: str, keepdims: int, tmp_path: Path) -> None:
    net = onnx_nets.Net(17)
    weight = net.weight(8, 3, 1, 1)
    weight[:3] = 0
    y = net.op("Relu", net.op("Conv", net.input("x", ["N", 3, 8, 8]), net.const(weight)))
    axes = {} if kind == "ReduceSum" else {"axes": [1]}
    together = net.op(kind, y, *([net.ints(1)] if kind == "ReduceSum" else []), keepdims=keepdims, **axes)
    if not keepdims:
        together = net.op("Unsqueeze", together, net.ints(1))
    net.output(net.conv(net.op("Mul", y, together), 8, 4, 1), shape=["N", 4, 8, 8])
    _, _, pruned = onnx_nets.assert_pruned_agrees(net.model(), tmp_path, ({"N": 1}, {"N": 3}))
    assert any(tensor.dims[:2] == [4, 5] for tensor in pruned.graph.initializer)
