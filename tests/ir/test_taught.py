"""Ops, criteria and penalties that a user teaches, in both frontends; nothing of it is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import prunec
from prunec.errors import BadInput, BadPlan
from prunec.ir.taught import Like, TaughtOp
from prunec.passes.selection.scores import per_class

X = torch.randn(2, 3, 8, 8)


@torch.library.custom_op("prunec_tests::swish", mutates_args=())
def swish(x: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    return x * torch.sigmoid(beta * x)


@swish.register_fake
def _(x: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("prunec_tests::blend", mutates_args=())
def blend(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


@blend.register_fake
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(a)


@torch.library.custom_op("prunec_tests::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    """Not torch's: it looks at the other channels."""
    return x - x.mean(1, keepdim=True)


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def half_dead(act: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.norm, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3)
            with torch.no_grad():
                self.norm.weight[:8] = 0
                self.norm.bias[:8] = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(act(self.norm(self.a(x))))

    return Net().eval()


def as_silu(op: TaughtOp) -> Like | None:
    assert op.inputs[0] is not None
    assert op.outputs == op.inputs
    return Like("silu") if op.attrs["beta"] == 1.0 else None


def test_an_unknown_torch_op_is_pinned_until_it_is_taught() -> None:
    module = half_dead(lambda x: swish(x))
    assert prunec.prune_module(module, (X,)).report.removed_channels == 0
    found = prunec.prune_module(module, (X,), rules={"prunec_tests::swish": as_silu})
    assert found.report.removed_channels == 8
    torch.testing.assert_close(found.module(X), module(X))
    assert prunec.prune_module(module, (X,)).report.removed_channels == 0  # nothing was remembered
    again = prunec.apply_plan(module, found.plan, rules={"prunec_tests::swish": as_silu})
    torch.testing.assert_close(again(X), module(X))


def test_an_op_may_be_called_as_reports_call_it() -> None:
    module = half_dead(lambda x: swish(x))
    found = prunec.prune_module(module, (X,), rules={"prunec_tests.swish": as_silu})
    assert found.report.removed_channels == 8


def test_a_rule_sees_the_arguments_and_may_pass() -> None:
    module = half_dead(lambda x: swish(x, 2.0))
    assert prunec.prune_module(module, (X,), rules={"prunec_tests::swish": as_silu}).report.removed_channels == 0


def test_an_op_of_two_tensors_ties_their_channels() -> None:
    module = half_dead(lambda x: blend(x, torch.relu(x)))
    found = prunec.prune_module(module, (X,), rules={"prunec_tests::blend": lambda _: Like("add")})
    assert found.report.removed_channels == 8
    torch.testing.assert_close(found.module(X), module(X))


def test_an_op_that_is_called_like_one_of_torchs_is_not_taken_for_it() -> None:
    module = half_dead(lambda x: relu(x))
    found = prunec.prune_module(module, (X,))
    assert found.report.removed_channels == 0


def test_a_rule_that_is_wrong_is_caught_by_the_check() -> None:
    module = half_dead(lambda x: relu(x))
    with pytest.raises(prunec.PrunecError):
        prunec.prune_module(module, (X,), rules={"prunec_tests::relu": lambda _: Like("relu")})


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (lambda _: Like("no_such_op"), "no_such_op"),
        (lambda _: Like("max_pool"), "pads, ceil"),
        (lambda _: Like("add"), "reads 2 tensors"),
        (lambda _: Like("silu", inputs=(4,)), "has 1"),
        (lambda _: "silu", "returned a str"),
        (lambda op: op.attrs["nothing"], "KeyError"),
    ],
)
def test_what_is_wrong_with_a_rule_is_told(rule: Any, told: str) -> None:
    module = half_dead(lambda x: swish(x))
    with pytest.raises(BadInput, match=r"prunec_tests::swish") as error:
        prunec.prune_module(module, (X,), rules={"prunec_tests::swish": rule})
    assert told in str(error.value)


def custom_domain(op: str = "SampleOp", domain: str = "com.microsoft", width: int = 16) -> onnx.ModelProto:
    """Return conv -> the op -> conv, half of the channels zero; ONNX Runtime knows SampleOp, which echoes."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((width, 3, 3, 3)).astype(np.float32)
    first[::2] = 0
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node(op, ["a"], ["b"], name="mine", domain=domain),
        helper.make_node("Conv", ["b", "v"], ["y"], name="second"),
    ]
    weights = {"w": first, "v": rng.standard_normal((4, width, 3, 3)).astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_an_unknown_onnx_op_is_pinned_until_it_is_taught(tmp_path: Path) -> None:
    rules = {"com.microsoft::SampleOp": lambda op: Like("identity") if op.inputs[0] is not None else None}
    model = custom_domain()
    assert prunec.prune_model(model).report.removed_channels == 0
    found = prunec.prune_model(model, rules=rules)  # the check runs it in ONNX Runtime
    assert found.report.removed_channels == 8
    assert found.report.validation is not None
    assert prunec.prune_model(model).report.removed_channels == 0
    onnx.save(model, tmp_path / "m.onnx")
    assert prunec.prune_onnx(tmp_path / "m.onnx", tmp_path / "p.onnx", rules=rules).removed_channels == 8
    prunec.apply_plan_onnx(tmp_path / "m.onnx", found.plan, tmp_path / "q.onnx", rules=rules)
    assert (tmp_path / "q.onnx").stat().st_size == (tmp_path / "p.onnx").stat().st_size
    assert prunec.analyze_onnx(tmp_path / "m.onnx", rules=rules).to_json_dict() != (
        prunec.analyze_onnx(tmp_path / "m.onnx").to_json_dict()
    )


def test_a_plan_made_with_rules_does_not_fit_without_them() -> None:
    plan = prunec.prune_model(custom_domain(), rules={"com.microsoft::SampleOp": lambda _: Like("identity")}).plan
    with pytest.raises(BadPlan):
        prunec.apply_plan(custom_domain(), plan)


def test_an_op_that_no_runtime_knows_is_pruned_unchecked() -> None:
    rules = {"mine::Spread": lambda _: Like("sample")}
    found = prunec.prune_model(custom_domain("Spread", "mine"), rules=rules, validate=False)
    assert found.report.removed_channels == 8


def test_a_rule_may_tell_the_shape_of_a_result() -> None:
    def halves(op: TaughtOp) -> Like:
        n, c, h, w = op.inputs[0] or ()
        assert isinstance(h, int)
        assert isinstance(w, int)
        return Like("max_pool", {"pads": [0] * 4, "ceil": False}, shape=(n, c, h // 2, w // 2))

    found = prunec.prune_model(custom_domain("Halve", "mine"), rules={"mine::Halve": halves}, validate=False)
    assert found.report.removed_channels == 8


def largest(facts: Any) -> np.ndarray[Any, Any]:
    """Score a channel by the sum of the squares of its weights."""
    return per_class(facts, {name: param.array.astype(np.float64) ** 2 for name, param in facts.graph.params.items()})


def test_a_criterion_is_a_function() -> None:
    module = half_dead(torch.relu)
    found = prunec.prune_module(module, (X,), criterion=largest, target_params=0.6)
    assert "largest" in found.plan.reason
    assert found.report.after.params <= 0.6 * found.report.before.params


@pytest.mark.parametrize("rising", [True, False])
def test_a_criterion_decides_which_channels_stay(rising: bool) -> None:
    module = half_dead(torch.relu)
    size = torch.arange(1.0, 17.0) if rising else torch.arange(16.0, 0.0, -1.0)
    with torch.no_grad():
        module.get_submodule("a").weight.copy_(size.reshape(16, 1, 1, 1).expand(16, 3, 3, 3))
        module.get_submodule("norm").weight.fill_(1e-3)
        module.get_submodule("b").weight.fill_(1.0)
    found = prunec.prune_module(module, (X,), criterion=largest, target_params=0.6)
    left = found.module.get_submodule("a").weight.detach().mean((1, 2, 3)).tolist()
    assert sorted(left) == list(range(17 - len(left), 17))


@pytest.mark.parametrize(
    ("criterion", "told"),
    [(lambda _: np.zeros(3), "shape"), (lambda _: 1 / 0, "ZeroDivisionError"), (lambda _: "no", "ValueError")],
)
def test_what_is_wrong_with_a_criterion_is_told(criterion: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        prunec.prune_module(half_dead(torch.relu), (X,), criterion=criterion, target_macs=0.5)


def test_a_penalty_is_a_function() -> None:
    module = half_dead(torch.relu).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    ista = prunec.sparsify(module, (X,), optimizer, rho=1e-3, penalty=lambda counts: counts.params)
    assert ista.rho == 1e-3
    for wrong, told in ((lambda c: -c.params, "shape"), (lambda c: c.nothing, "AttributeError")):
        with pytest.raises(BadInput, match=told):
            prunec.sparsify(module, (X,), torch.optim.SGD(module.parameters(), lr=0.1), rho=1e-3, penalty=wrong)
