"""With data whole branches are tried without, and go where that is clearly better than taking channels one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunec.api import prune_module, prune_onnx
from prunec.data.calibration import Calibration
from prunec.fitting.reconstruct import Reconstruction
from prunec.ir.plan import PrunePlan
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.apply_onnx import apply_plan_onnx
from prunec.pipeline.export import export_onnx
from prunec.runtime import sessions
from tests.modules.blocks import Basic, Head, cbr


def residual(idle: tuple[int, ...] = (2, 4), blocks: int = 5) -> nn.Module:
    """Return a network of residual blocks of which some hardly add anything but a constant."""
    torch.manual_seed(0)
    body = [Basic(8, 8) for _ in range(blocks)]
    net = nn.Sequential(cbr(3, 8), *body[:3], Basic(8, 12, 2), *(Basic(12, 12) for _ in body[3:]), Head(12))
    with torch.no_grad():
        for at in range(1, len(net) - 1):
            if at in idle:
                net[at].bn2.weight.mul_(0.02)
                net[at].bn2.bias.uniform_(-0.5, 0.5)
        net.train()
        for seed in range(10):
            net(torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(seed)))
    return net.eval()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((120, 3, 12, 12)).astype(np.float32))
    return folder


X = torch.zeros(1, 3, 12, 12)


def error(net: nn.Module, made: nn.Module) -> float:
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        wanted = net(x)
        return float((made(x) - wanted).square().sum() / (wanted - wanted.mean()).square().sum())


def without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconstruction, "without_branches", lambda *_, **__: ())


def test_branches_that_add_next_to_nothing_go_as_a_whole(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = residual()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    how: dict[str, Any] = {"target_macs": 0.65, "validate": False}
    made = prune_module(net, (X,), calibration=Calibration(data), **how)
    assert len(made.report.branches) == 2
    assert not made.report.exact
    assert made.report.after.macs <= 0.65 * made.report.before.macs
    gone = [layer.node for layer in made.report.layers if not layer.after]
    assert len(gone) == 4
    assert not made.report.blocked
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    without_trials(monkeypatch)
    other = prune_module(net, (X,), calibration=Calibration(data), **how)
    assert not other.report.branches
    assert error(net, made.module) < 0.5 * error(net, other.module)


def test_a_plan_without_branches_does_the_same_to_a_fresh_module_and_a_file(data: Path, tmp_path: Path) -> None:
    net, x = residual(), torch.randn(4, 3, 12, 12)
    export_onnx(net, (x,), tmp_path / "net.onnx")
    report = prune_onnx(
        tmp_path / "net.onnx",
        tmp_path / "out.onnx",
        calibration=Calibration(data),
        target_macs=0.65,
        plan_file=tmp_path / "plan.json",
    )
    assert len(report.branches) == 2
    plan = PrunePlan.from_json((tmp_path / "plan.json").read_text())
    apply_plan_onnx(tmp_path / "net.onnx", plan, tmp_path / "again.onnx")
    first, second = (sessions.open_runner(tmp_path / n, n, "cpu", optimise=True) for n in ("out.onnx", "again.onnx"))
    name = first.session.get_inputs()[0].name
    np.testing.assert_allclose(
        first.session.run(None, {name: x.numpy()})[0], second.session.run(None, {name: x.numpy()})[0], atol=1e-6
    )
    made = prune_module(net, (X,), calibration=Calibration(data), target_macs=0.65, validate=False)
    again = apply_plan(residual(), made.plan)
    with torch.no_grad():
        torch.testing.assert_close(again(x), made.module(x))


def test_a_branch_stays_where_the_outputs_need_it(data: Path) -> None:
    made = prune_module(residual(idle=()), (X,), calibration=Calibration(data), target_macs=0.9, validate=False)
    assert not made.report.branches


def test_a_branch_that_is_kept_by_request_stays(data: Path) -> None:
    how: dict[str, Any] = {"target_macs": 0.65, "validate": False, "keep": ("2.conv1.weight", "4.conv1.weight")}
    report = prune_module(residual(), (X,), calibration=Calibration(data), **how).report
    left = {layer.node: layer.after for layer in report.layers}
    assert all(left[name] for name in ("_2_conv1", "_2_conv2", "_4_conv1", "_4_conv2"))


def test_one_order_tries_no_branches(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconstruction, "error", None)
    how: dict[str, Any] = {"target_macs": 0.65, "validate": False}
    assert prune_module(residual(), (X,), calibration=Calibration(data, orders=1), **how).report.removed_channels


def test_a_shortcut_with_a_convolution_makes_up_for_a_branch_that_is_constant(data: Path) -> None:
    net = residual(idle=())
    with torch.no_grad():
        net[4].bn2.weight.zero_()  # the block with a convolution in its shortcut
    made = prune_module(net, (X,), calibration=Calibration(data, orders=1), target_macs=0.7, validate=False)
    assert {layer.node for layer in made.report.layers if not layer.after} >= {"_4_conv1", "_4_conv2"}
    assert error(net, made.module) < 0.5


@pytest.mark.parametrize(("ratio", "samples", "taken"), [(0.9, 60, False), (0.6, 60, True), (0.97, 560, True)])
def test_few_samples_have_to_be_sure_that_a_branch_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, samples: int, taken: bool
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((samples, 3, 12, 12)).astype(np.float32))

    def error(self: Reconstruction, facts: Any, *_: Any) -> float:
        return 1.0 if not facts.constants.replaced else ratio

    monkeypatch.setattr(Reconstruction, "error", error)
    made = prune_module(residual(), (X,), calibration=Calibration(tmp_path), target_macs=0.65, validate=False)
    assert bool(made.report.branches) == taken
