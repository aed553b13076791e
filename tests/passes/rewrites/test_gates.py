"""Constants times an input-dependent gate: --gates fold takes them past the product, by a convolution on the gate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from assertions import assert_same_function, contraction_macs, parameter_elements
from onnx_models.nets import Net, assert_same_outputs, random_feeds
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import Pruned, prune_module, prune_onnx
from prunec.errors import BadInput, BadPlan
from prunec.ir.plan import PrunePlan
from prunec.passes.rewrites import gates, residuals
from prunec.pipeline.apply import apply_plan

WIDTH, SIZE = 24, 9
SILENT = (0, 3, 4, 10, 11, 12, 17)


class Gated(nn.Module):
    """An inverted residual with squeeze-excite: depthwise, gate, project; some constants are not zero."""

    def __init__(self, kernel: int = 1, padding: int = 0, bias: bool = False, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.expand = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.down, self.up = nn.Conv2d(WIDTH, 6, 1), nn.Conv2d(6, WIDTH, 1)
        self.project = nn.Conv2d(WIDTH, 8, kernel, stride, padding, bias=bias)
        self.last = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 3, padding=1)
        self.norm.weight.data[list(SILENT)] = 0
        self.norm.bias.data[list(SILENT)] = torch.linspace(0.2, 1, len(SILENT))

    def gated(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.depthwise(F.relu(self.expand(x)))))
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.last(self.project(self.gated(x)))))


BATCH = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every fold pay that saves anything."""
    monkeypatch.setattr(gates, "ADD_MACS", 0)


def fold(net: nn.Module, **options: Any) -> Pruned:
    return prune_module(net, (BATCH,), gates="fold", **options)


def ready(net: nn.Module) -> nn.Module:
    return net.double().eval()


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"kernel": 3}, {"stride": 2}, {"kernel": 2, "stride": 2, "bias": True}]
)
def test_gated_constants_leave_the_product(options: dict[str, Any]) -> None:
    net = ready(Gated(**options))
    assert prune_module(net, (BATCH,)).plan.is_empty
    result = fold(net)
    assert_same_function(net, result.module, BATCH, torch.randn(1, 3, 13, 20).double(), tolerance=1e-9)
    assert result.plan.exact
    assert [item.positions for item in result.plan.gate_folds] == [SILENT]
    left = WIDTH - len(SILENT)
    assert [layer.after for layer in result.report.layers] == [left, left, 6, WIDTH, 8, 4]
    assert result.report.before.macs == contraction_macs(net, BATCH)
    assert result.report.before.params == parameter_elements(net)
    assert result.report.after.macs == contraction_macs(result.module, BATCH)
    assert result.report.after.params == parameter_elements(result.module)
    again = fold(result.module)
    assert (again.report.removed_channels, again.plan.gate_folds) == (0, ())


def test_a_fold_that_costs_more_than_it_saves_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "ADD_MACS", 1000)
    assert fold(ready(Gated())).plan.is_empty


def test_zero_padding_needs_the_product_itself() -> None:
    assert fold(ready(Gated(kernel=3, padding=1))).plan.is_empty


class ReadTwice(Gated):
    """The product is read by two convolutions, one of them called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Parameter(torch.randn(5, WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Any:
        x = self.gated(x)
        return self.head(self.last(self.project(x))), F.conv2d(x, self.side)


class ReadOtherwise(Gated):
    """The product is read by an activation as well."""

    def forward(self, x: Tensor) -> Any:
        x = self.gated(x)
        return self.head(self.last(self.project(x))), F.relu(x).mean((2, 3))


def test_every_reader_gets_its_share() -> None:
    net = ready(ReadTwice())
    result = fold(net)
    assert [len(item.readers) for item in result.plan.gate_folds] == [2]
    assert_same_function(net, result.module, BATCH, tolerance=1e-9)


def test_a_product_that_something_else_reads_stays() -> None:
    assert fold(ready(ReadOtherwise())).plan.gate_folds == ()


def test_a_fresh_architecture_with_plan_and_weights_is_the_pruned_network_again() -> None:
    result = fold(ready(Gated()))
    plan = PrunePlan.from_json(result.plan.to_json())
    assert plan == result.plan
    fresh = Gated()
    for parameter in fresh.parameters():
        parameter.data.normal_()
    again = apply_plan(ready(fresh), plan)
    again.load_state_dict(result.module.state_dict())
    assert_same_function(result.module, again, BATCH, tolerance=1e-12)


def test_a_plan_of_another_network_is_refused() -> None:
    plan = fold(ready(Gated())).plan
    (item,) = plan.gate_folds
    for wrong in (
        replace(item, product="nowhere"),
        replace(item, readers=("head",)),
        replace(item, readers=(item.product,)),
        replace(item, positions=(WIDTH,), constants=(1.0,)),
        replace(item, gate=5),
    ):
        with pytest.raises(BadPlan, match="rewrites the network"):
            apply_plan(ready(Gated()), replace(plan, gate_folds=(wrong,)))


def test_channels_may_go_by_score_as_well() -> None:
    net = ready(Gated())
    result = fold(net, criterion="l1", target_macs=0.4)
    assert result.report.after.macs <= 0.4 * result.report.before.macs
    assert result.report.after.macs == contraction_macs(result.module, BATCH)
    assert_same_function(result.module, apply_plan(net, result.plan), BATCH, tolerance=1e-12)


def test_kept_channels_are_rounded_to_a_multiple() -> None:
    net = ready(Gated())
    result = fold(net, multiple_of=4)
    assert result.module.get_parameter("depthwise.weight").shape[0] == 20
    assert_same_function(net, result.module, BATCH, tolerance=1e-9)


def test_the_report_holds_what_was_folded() -> None:
    document = json.loads(json.dumps(fold(ready(Gated())).report.to_json_dict()))
    assert document["gates"] == [{"node": "mul", "op": "aten.mul", "channels": len(SILENT)}]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(BadInput, match="use tie or fold"):
        prune_module(ready(Gated()), (BATCH,), gates="expand")


# --- files --------------------------------------------------------------------------------------------


def gated(opset: int = 17, silent: Sequence[int] = SILENT, reader: str = "Conv", lone: int | None = None) -> Net:
    """Return a file with one gate; output ``lone`` of what reads the product is made of constants alone."""
    net = Net(opset)
    x = net.op("Relu", net.conv(net.input("x", ["n", 3, "h", "w"]), 3, 32))
    x = net.conv(x, 32, WIDTH, silent=silent)
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), WIDTH, 6, kernel=1))
    product = net.op("Mul", net.op("Sigmoid", net.conv(gate, 6, WIDTH, kernel=1)), x)
    weight = net.weight(8, WIDTH, 1, 1)
    if lone is not None:
        weight[lone, np.setdiff1d(np.arange(WIDTH), silent)] = 0
    attrs = {} if reader == "Conv" else {"domain": "com.microsoft", "activation": "Relu"}
    y = net.op(reader, product, net.const(weight), **attrs)
    net.output(net.conv(net.op("Tanh", y), 8, 4))
    return net


@pytest.mark.parametrize("opset", [9, 17])
def test_gated_constants_leave_a_files_product(tmp_path: Path, opset: int) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    model = gated(opset).model()
    onnx.save(model, before)
    report = prune_onnx(before, after, gates="fold", validate=False)
    assert [item.channels for item in report.gates] == [len(SILENT)]
    assert [layer.after for layer in report.layers] == [32, WIDTH - len(SILENT), 6, WIDTH, 8, 4]
    onnx.checker.check_model(str(after), full_check=True)
    for sizes in ({}, {"n": 3, "h": 9, "w": 21}):
        assert_same_outputs(before, after, random_feeds(model, sizes))
    twice = prune_onnx(after, tmp_path / "twice.onnx", gates="fold", validate=False)
    assert (twice.removed_channels, twice.gates) == (0, ())


def test_the_sum_is_behind_a_normalisation_so_that_the_two_can_be_merged(tmp_path: Path) -> None:
    net = gated()
    at = next(i for i, node in enumerate(net.nodes) if node.op_type == "Tanh")
    before, after = net.nodes[:at], net.nodes[at:]
    net.nodes = before
    rng = net.rng
    vectors = [net.const(rng.uniform(0.5, 2, 8).astype(np.float32)) for _ in range(4)]
    after[0].input[0] = net.op("BatchNormalization", after[0].input[0], *vectors, epsilon=0.3)
    net.nodes += after
    files = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(net.model(), files[0])
    assert prune_onnx(*files, gates="fold", validate=False).gates
    assert_same_outputs(*files, random_feeds(net.model()))
    made = {output: node for node in onnx.load(files[1]).graph.node for output in node.output}
    (added,) = [node for node in made.values() if node.op_type == "Add"]
    assert {made[name].op_type for name in added.input} == {"BatchNormalization", "Conv"}


def test_nothing_is_added_inside_a_fused_convolution(tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    model = gated(reader="FusedConv").model()
    onnx.save(model, before)
    report = prune_onnx(before, after, gates="fold", validate=False)
    assert report.gates == ()
    assert_same_outputs(before, after, random_feeds(model))


def test_what_a_fold_adds_up_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residuals, "COPY_MACS", 0)
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    model = gated(lone=2).model()
    onnx.save(model, before)
    report = prune_onnx(before, after, gates="fold", residual="expand", validate=False)
    assert report.gates
    assert_same_outputs(before, after, random_feeds(model))


def test_gates_and_sums_are_rewritten_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residuals, "COPY_MACS", 0)
    net = gated()
    x = net.op("Relu", net.conv("x", 3, 4))
    net.output(net.conv(net.op("Add", x, net.conv(x, 4, 4, silent=(1,))), 4, 64))
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    model = net.model()
    onnx.save(model, before)
    report = prune_onnx(before, after, gates="fold", residual="expand", validate=False)
    assert report.gates
    assert report.expanded
    assert_same_outputs(before, after, random_feeds(model))
