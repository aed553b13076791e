"""What a network is called with: structures, arguments by name, half types; and plans that hold all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunec
from prunec.check.validate import validate_modules
from prunec.errors import BadInput, BadPlan
from prunec.frontends.fx.frontend import trace
from prunec.pipeline.options import Options
from prunec.toolchain.fx_pass import PruneChannels


class Taking(nn.Module):
    """A block and a head between which a subclass finds its image."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.o = nn.Conv2d(8, 2, 1)

    def run(self, x: Tensor) -> Tensor:
        return self.o(self.a(x))  # type: ignore[no-any-return]  # nn.Module's call is untyped


class OfDict(Taking):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.run(batch["image"])


class OfNested(Taking):
    def forward(self, batch: dict[str, Any], pair: tuple[Tensor, list[Tensor]]) -> Tensor:
        return self.run(batch["images"][0] + pair[0]) * pair[1][0]


class OfNumbers(Taking):
    def forward(self, x: Tensor, times: int, flip: bool, scale: float, extra: Tensor | None) -> Tensor:
        for _ in range(times):
            x = x * scale
        y = self.run(x.flip(-1) if flip else x)
        return y if extra is None else y + extra


class ByKeyword(Taking):
    def forward(self, x: Tensor, *, mask: Tensor, extra: Tensor | None = None) -> Tensor:
        return self.run(x) * mask


class OfAnything(Taking):
    def forward(self, **batch: Tensor) -> Tensor:
        return self.run(batch["pixels"]) + batch["offset"]


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


EXAMPLES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "a dict": (OfDict, ({"image": image()},)),
    "nested": (OfNested, ({"images": [image()], "size": 8}, (image(), [torch.rand(2, 1, 1, 1)]))),
    "numbers": (OfNumbers, (image(), 2, True, 0.5, None)),
    "by name": (ByKeyword, {"x": image(), "mask": torch.rand(2, 1, 8, 8)}),
    "in another order": (ByKeyword, {"mask": torch.rand(2, 1, 8, 8), "x": image()}),
    "any name": (OfAnything, {"pixels": image(), "offset": torch.rand(2, 1, 8, 8)}),
    "a batch of one": (OfDict, ({"image": image()[:1]},)),
}


def call(net: nn.Module, example: Any) -> Tensor:
    with torch.no_grad():
        return net(**example) if isinstance(example, dict) else net(*example)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_plan_makes_the_pruned_network_again_whatever_it_is_called_with(name: str) -> None:
    make, example = EXAMPLES[name]
    net = make().eval()
    pruned = prunec.prune_module(net, example, criterion="l1", target_macs=0.5)
    assert pruned.module.get_parameter("a.0.weight").shape[0] < 8
    plan = prunec.PrunePlan.from_json(pruned.plan.to_json())
    assert plan == pruned.plan
    again = prunec.apply_plan(make().eval(), plan)
    again.load_state_dict(pruned.module.state_dict())
    assert torch.allclose(call(again, example), call(pruned.module, example), atol=1e-6)


@pytest.mark.parametrize("name", EXAMPLES)
def test_exact_removal_is_checked_whatever_a_network_is_called_with(name: str) -> None:
    make, example = EXAMPLES[name]
    net = make().eval()
    with torch.no_grad():
        net.a[1].weight[:4] = 0  # type: ignore[index,union-attr]
        net.a[1].bias.normal_()  # type: ignore[index,union-attr,operator]
    pruned = prunec.prune_module(net, example)
    assert pruned.report.validation is not None
    assert not pruned.report.validation.vacuous
    assert pruned.report.removed_channels >= 3
    assert torch.allclose(call(pruned.module, example), call(net, example), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_tensor_is_the_only_argument_not_a_sequence_of_its_rows(batch: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    image = torch.randn(batch, 3, 8, 8)
    alone, listed = (prunec.prune_module(net, given, criterion="l1", target_macs=0.6) for given in (image, (image,)))
    assert alone.plan.to_json() == listed.plan.to_json()
    assert torch.equal(prunec.apply_plan(net, alone.plan)(image), alone.module(image))
    assert PruneChannels(image)(torch.fx.symbolic_trace(net)) is not None


def test_tensors_inside_a_structure_are_inputs_not_constants() -> None:
    graph = trace(OfDict(), ({"image": image()},)).graph
    assert graph.inputs == ("batch.image",)
    assert not any(name.startswith("constant") for name in graph.params)


def test_plans_of_networks_that_take_tensors_are_written_as_before() -> None:
    plan = prunec.prune_module(nn.Sequential(nn.Conv2d(3, 2, 1)), (image(),)).plan
    document = json.loads(plan.to_json())
    assert document["version"] == 1
    assert "example" not in document


class Box:
    """What a plan cannot hold."""

    def __init__(self) -> None:
        self.factor = 2.0


class OfAnObject(Taking):
    def forward(self, x: Tensor, box: Box) -> Tensor:
        return self.run(x * box.factor)


def test_a_value_that_a_plan_cannot_hold_is_asked_for() -> None:
    example = (image(), Box())
    pruned = prunec.prune_module(OfAnObject().eval(), example, criterion="l1", target_macs=0.5)
    plan = prunec.PrunePlan.from_json(pruned.plan.to_json())
    with pytest.raises(BadPlan, match=r"argument of type .*test_arguments\.Box, which it cannot hold"):
        prunec.apply_plan(OfAnObject().eval(), plan)
    again = prunec.apply_plan(OfAnObject().eval(), plan, example)
    again.load_state_dict(pruned.module.state_dict())
    assert torch.allclose(call(again, example), call(pruned.module, example), atol=1e-6)
    own = prunec.apply_plan(OfAnObject().eval(), plan, example, keep_class=True)
    assert type(own) is OfAnObject
    assert own.get_parameter("a.0.weight").shape == again.get_parameter("a.0.weight").shape


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(BadInput) as error:
        prunec.prune_module(ByKeyword(), {"x": image(), "msak": image()})
    assert "the arguments x, msak do not fit the network's forward" in str(error.value)
    assert "mask" in error.value.why


# --- half types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_modules_of_other_float_types_are_pruned_exactly(dtype: torch.dtype) -> None:
    net = OfDict().to(dtype).eval()
    with torch.no_grad():
        net.a[1].weight[:4] = 0
        net.a[1].bias.normal_()
    pruned = prunec.prune_module(net, ({"image": image().to(dtype)},))
    assert pruned.report.removed_channels >= 3
    assert {p.dtype for p in pruned.module.parameters()} == {dtype}
    assert pruned.report.validation is not None
    assert pruned.report.validation.passed


def test_a_bfloat16_module_that_computes_something_else_does_not_pass() -> None:
    net, other = (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).bfloat16() for _ in range(2))
    assert not validate_modules(net, other, (image().bfloat16(),)).passed


# --- options --------------------------------------------------------------------------------------------


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(BadInput) as error:
        prunec.prune_module(nn.Sequential(nn.Conv2d(3, 2, 1)), (image(),), target_mac=0.5)
    assert str(error.value).startswith(
        "error[bad-input]: there is no option 'target_mac'\n  do:  did you mean target_macs"
    )
    assert "there are border, residual, gates, keep" in error.value.do


def test_keep_may_be_one_pattern() -> None:
    assert Options.of(keep="head*").keep == ("head*",)
