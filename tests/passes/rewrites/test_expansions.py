"""Residual sums that are constant in part: --residual expand takes those channels out of one branch, where it pays."""

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

from prunec import apply_plan
from prunec.api import Pruned, prune_module, prune_onnx
from prunec.cli.main import execute
from prunec.data.calibration import Calibration
from prunec.errors import BadInput, BadPlan, UnsupportedModel
from prunec.ir.plan import PrunePlan
from prunec.passes.rewrites import residuals
from prunec.report.survivors import RESIDUAL

WIDTH, SIZE = 32, 10
HALF = tuple(range(0, WIDTH, 2))


class Residual(nn.Module):
    """A stem, two basic blocks and a head; each block's last gammas are zero in some channels."""

    def __init__(self, silent: Sequence[Sequence[int]] = (HALF, (1, 2, 30)), kernel: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2),
                nn.ReLU(),
                nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2),
                nn.BatchNorm2d(WIDTH),
            )
            for _ in silent
        )
        self.head = nn.Conv2d(WIDTH, 5, 3, padding=1)
        for block, channels in zip(self.blocks, silent, strict=True):
            norm = block[-1]
            assert isinstance(norm, nn.BatchNorm2d)
            norm.weight.data[list(channels)] = 0
            norm.bias.data.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x += block(x)
            x = F.relu(x)
        return self.head(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped


BATCH = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def expand(net: nn.Module, **options: Any) -> Pruned:
    return prune_module(net, (BATCH,), residual="expand", **options)


@pytest.fixture
def net() -> nn.Module:
    return Residual().double().eval()


@pytest.fixture
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every expansion pay that saves anything."""
    monkeypatch.setattr(residuals, "COPY_MACS", 0)


def test_a_branch_loses_the_channels_in_which_it_is_constant(net: nn.Module) -> None:
    result = expand(net)
    assert [len(item.positions) for item in result.plan.expansions] == [len(HALF)]
    assert result.module.get_parameter("blocks.0.2.weight").shape == (WIDTH - len(HALF), WIDTH, 3, 3)
    assert_same_function(net, result.module, BATCH, torch.randn(1, 3, 17, 8).double(), tolerance=1e-9)
    assert result.plan.exact
    assert result.report.removed_channels == len(HALF)
    assert result.report.after.macs == contraction_macs(result.module, BATCH)
    assert result.report.after.params == parameter_elements(result.module)
    (found,) = result.report.expanded
    assert (found.op, found.channels, found.kept) == ("aten.add_", len(HALF), WIDTH - len(HALF))


def test_sums_stay_tied_unless_asked(net: nn.Module) -> None:
    result = prune_module(net, (BATCH,))
    assert result.plan.is_empty
    assert result.report.expanded == ()
    assert {item.reason for item in result.report.blocked} == {RESIDUAL}


def test_what_costs_more_to_put_back_than_it_saves_stays(net: nn.Module) -> None:
    result = expand(net)
    held = {channel for item in result.report.blocked for layer in item.layers for channel in layer.channels}
    assert held == {1, 2, 30}, "three channels of the second block save less than a copy of 32"
    thin = Residual(kernel=1).double().eval()
    assert expand(thin).plan.is_empty


@pytest.mark.usefixtures("_free")
def test_a_fresh_architecture_with_plan_and_weights_is_the_pruned_network_again(net: nn.Module) -> None:
    result = expand(net)
    assert len(result.plan.expansions) == 2
    plan = PrunePlan.from_json(result.plan.to_json())
    torch.manual_seed(5)
    again = apply_plan(Residual(((), ())).double().eval(), plan)
    again.load_state_dict(result.module.state_dict())
    assert_same_function(net, again, BATCH, tolerance=1e-9)
    with pytest.raises(UnsupportedModel, match="changes the network's forward"):
        apply_plan(net, plan, keep_class=True)


def test_a_plan_of_another_network_is_refused() -> None:
    plan = expand(Residual().double().eval()).plan
    (item,) = plan.expansions
    for wrong in (replace(item, node="nowhere"), replace(item, positions=(WIDTH,)), replace(item, index=7)):
        with pytest.raises(BadPlan, match="rewrites the network"):
            apply_plan(Residual().double().eval(), replace(plan, expansions=(wrong,)))


@pytest.mark.usefixtures("_free")
def test_kept_channels_are_rounded_to_a_multiple() -> None:
    assert expand(Residual((HALF[:9], (1, 2, 30))).double().eval(), multiple_of=16).plan.is_empty
    many = Residual((tuple(range(20)), ())).double().eval()
    result = expand(many, multiple_of=16)
    assert result.module.get_parameter("blocks.0.2.weight").shape[0] == 16
    assert_same_function(many, result.module, BATCH, tolerance=1e-9)


@pytest.mark.usefixtures("_free")
def test_channels_may_go_by_score_as_well(net: nn.Module) -> None:
    result = expand(net, criterion="l1", target_macs=0.4, multiple_of=4)
    assert result.report.after.macs <= 0.4 * result.report.before.macs
    assert result.report.after.macs == contraction_macs(result.module, BATCH)
    again = apply_plan(net, PrunePlan.from_json(result.plan.to_json()))
    assert_same_function(result.module, again, BATCH, tolerance=1e-12)


@pytest.mark.usefixtures("_free")
def test_a_stream_in_many_parts_reaches_the_same_budget() -> None:
    rng = np.random.default_rng(0)
    net = Residual([rng.choice(WIDTH, WIDTH // 2, replace=False) for _ in range(5)]).double().eval()
    for residual in ("tie", "expand"):
        result = prune_module(net, (BATCH,), residual=residual, criterion="l1", target_macs=0.02, validate=False)
        assert result.report.after.macs <= 0.02 * result.report.before.macs
        assert result.report.after.macs == contraction_macs(result.module, BATCH)


@pytest.mark.usefixtures("_free")
def test_what_only_data_show_to_be_constant_is_taken_out_too(tmp_path: Path) -> None:
    net = Residual(((), ()))
    branch = net.blocks[0]
    assert isinstance(branch, nn.Sequential)
    branch.append(nn.ReLU())
    norm = branch[-2]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.bias.data[:8] = -100  # never positive on these data
    net = net.eval()
    np.save(tmp_path / "images.npy", BATCH.float().numpy())
    data = Calibration(tmp_path)
    result = prune_module(net, (BATCH.float(),), calibration=data, residual="expand")
    assert any(set(range(8)) <= set(item.positions) for item in result.plan.expansions)
    assert not result.plan.exact
    assert result.report.exact_on_data
    assert_same_function(net, result.module, BATCH.float(), tolerance=1e-5)


def test_an_unknown_choice_is_refused(net: nn.Module) -> None:
    with pytest.raises(BadInput, match="use tie or expand"):
        prune_module(net, (BATCH,), residual="keep")


# --- files --------------------------------------------------------------------------------------------


def stream(opset: int, biases: bool, constants: str = "initializer") -> Net:
    """Return a file with one block; its last convolution has zero filters, with biases or without."""
    net = Net(opset, constants=constants)
    x = net.op("Relu", net.conv(net.input("x", ["n", 3, "h", "w"]), 3, WIDTH))
    branch = net.conv(net.op("Relu", net.conv(x, WIDTH, WIDTH)), WIDTH, WIDTH, silent=HALF)
    if not biases:
        stored = next(t for t in net.initializers if t.name == net.nodes[-1].input[2])
        stored.CopyFrom(onnx.numpy_helper.from_array(np.zeros(WIDTH, np.float32), stored.name))
    net.output(net.conv(net.op("Relu", net.op("Add", branch, x)), WIDTH, 4))
    return net


@pytest.mark.parametrize("constants", ["initializer", "node"])
@pytest.mark.parametrize("opset", [9, 12, 17])
def test_a_files_branch_is_expanded(tmp_path: Path, opset: int, constants: str) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    model = stream(opset, biases=True, constants=constants).model()
    onnx.save(model, before)
    report = prune_onnx(before, after, residual="expand", validate=False)
    assert report.removed_channels == len(HALF)
    onnx.checker.check_model(str(after), full_check=True)
    for sizes in ({}, {"n": 3, "h": 9, "w": 21}):
        assert_same_outputs(before, after, random_feeds(model, sizes))
    kinds = [node.op_type for node in onnx.load(after).graph.node]
    assert [kinds.count(kind) for kind in ("Pad", "Gather", "Add")] == [1, 1, 2]
    assert after.stat().st_size < before.stat().st_size
    twice = prune_onnx(after, tmp_path / "twice.onnx", residual="expand", validate=False)
    assert (twice.removed_channels, twice.expanded) == (0, ())


def test_zeros_need_no_constants(tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(stream(17, biases=False).model(), before)
    assert prune_onnx(before, after, residual="expand", validate=False).expanded
    assert [node.op_type for node in onnx.load(after).graph.node].count("Add") == 1


@pytest.mark.usefixtures("_free")
def test_both_operands_of_a_sum_may_be_expanded(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, WIDTH))
    first = net.op("Relu", net.conv(x, WIDTH, 8, silent=(0, 1, 5)))
    second = net.op("Relu", net.conv(x, WIDTH, 8, silent=(1, 2)))
    net.output(net.conv(net.op("Add", first, second), 8, 4, pads=[0] * 4))
    onnx.save(net.model(), tmp_path / "before.onnx")
    report = prune_onnx(tmp_path / "before.onnx", tmp_path / "after.onnx", residual="expand", validate=False)
    # Channel 1 is constant in both: it leaves the sum itself.
    assert [(layer.before, layer.after) for layer in report.layers] == [(WIDTH, WIDTH), (8, 5), (8, 6), (4, 4)]
    assert [(item.channels, item.kept) for item in report.expanded] == [(2, 5), (1, 6)]
    assert_same_outputs(tmp_path / "before.onnx", tmp_path / "after.onnx", random_feeds(net.model()))


def test_an_operand_that_is_constant_throughout_is_stored_not_expanded(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [1, 3, 6, 6])
    first = net.conv(x, 3, 8, silent=range(8))
    net.output(net.conv(net.op("Add", first, net.conv(x, 3, 8)), 8, 4, pads=[0] * 4))
    onnx.save(net.model(), tmp_path / "before.onnx")
    for residual in ("tie", "expand"):
        report = prune_onnx(tmp_path / "before.onnx", tmp_path / "after.onnx", residual=residual, validate=False)
        assert [layer.after for layer in report.layers] == [0, 8, 4]
        assert report.expanded == ()


def test_the_report_holds_what_was_expanded() -> None:
    document = json.loads(json.dumps(expand(Residual().double().eval()).report.to_json_dict()))
    (item,) = document["expanded"]
    assert set(item) == {"node", "op", "channels", "kept"}


def test_the_command_line_says_what_could_be_expanded_and_what_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, after = str(tmp_path / "before.onnx"), str(tmp_path / "after.onnx")
    onnx.save(stream(17, biases=True).model(), before)

    def shown(*arguments: str) -> str:
        assert execute(list(arguments)) == 0
        return " ".join(capfd.readouterr().out.split())

    hint = f"{len(HALF)} of them are held by a sum: prunec prune --residual expand"
    assert hint in shown("analyze", before)
    assert hint in shown("prune", before, "-o", after, "--no-validate")
    told = shown("prune", before, "-o", after, "--force", "--residual", "expand", "--input-shape", "1x3x12x12")
    assert hint not in told
    assert f"put back where it is added up: {len(HALF)} at 1" in told
    assert "agrees with the original" in told
