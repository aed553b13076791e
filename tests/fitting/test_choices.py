"""Several orders of channels are tried by a rough fit, and the best is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from prunec.api import prune_module, prune_onnx
from prunec.data.calibration import Calibration
from prunec.errors import PrunecError
from prunec.fitting import reconstruct
from prunec.fitting.reconstruct import Reconstruction
from prunec.fitting.stages import parts
from prunec.fitting.stages_module import ModuleStages, OpenedModule
from prunec.fitting.stages_onnx import OnnxStages
from prunec.frontends.fx.frontend import trace
from prunec.pipeline.export import export_onnx


class _Classifier(nn.Module):
    """Ends in a Gemm, so that the last layer that is fitted makes the output itself; branches count less and less."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(3, 16, 3, padding=1) for _ in range(4))
        self.second = nn.ModuleList(nn.Conv2d(16, 12, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> Any:
        total = 0.0
        for number, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            total = total + 0.3**number * torch.tanh(second(torch.relu(first(x))))
        return self.head(total.mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return _Classifier().eval()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((40, 3, 10, 10)).astype(np.float32))
    return folder


def keeps(net: nn.Module, data: Path, orders: int = 6, criterion: str = "reconstruct") -> Any:
    how: dict[str, Any] = {"calibration": Calibration(data, orders=orders), "target_macs": 0.5, "multiple_of": 1}
    how["criterion"] = criterion
    return prune_module(net, (torch.zeros(1, 3, 10, 10),), validate=False, **how).plan.keeps


@pytest.mark.parametrize(
    ("errors", "wins"), [((1.0, 0.9), 1), ((1.0, 0.97), 0), ((1.0, 1.1), 0), ((np.nan, 0.9), 1), ((0.9, np.nan), 0)]
)
def test_the_order_with_a_clearly_smaller_error_is_fitted(
    net: nn.Module, data: Path, monkeypatch: pytest.MonkeyPatch, errors: tuple[float, ...], wins: int
) -> None:
    alone = []
    monkeypatch.setattr(reconstruct, "ORDERS", ((1.0, 0.0), (0.0, 0.0)))
    monkeypatch.setattr(Reconstruction, "without_branches", lambda *_, **__: ())
    for pair in ((0.0, 1.0), (1.0, 0.0)):
        with monkeypatch.context() as patched:
            given = iter(pair)
            patched.setattr(Reconstruction, "error", lambda *_, given=given: next(given))
            alone.append(keeps(net, data))
    assert alone[0] != alone[1]
    told = iter(errors)
    monkeypatch.setattr(Reconstruction, "_rough_error", lambda *_: next(told))
    assert keeps(net, data) == alone[wins]


def test_a_file_whose_last_layer_makes_the_output_is_tried(
    net: nn.Module, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(net, (torch.zeros(2, 3, 10, 10),), tmp_path / "net.onnx")
    found, rough = list[float](), Reconstruction._rough_error

    def told(self: Reconstruction, *given: Any) -> float:
        found.append(rough(self, *given))
        return found[-1]

    monkeypatch.setattr(Reconstruction, "_rough_error", told)
    how: dict[str, Any] = {"calibration": Calibration(data), "target_macs": 0.5, "multiple_of": 1}
    prune_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx", **how)
    assert len(found) > 1
    assert all(0 < error < 1 for error in found)


def test_one_order_is_not_tried(net: nn.Module, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconstruction, "_rough_error", None)
    assert keeps(net, data, orders=1)
    with pytest.raises(PrunecError, match="0 orders"):
        keeps(net, data, orders=0)


def test_orders_are_judged_on_samples_that_their_fits_have_not_seen(
    net: nn.Module, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[set[bytes]]()
    over = OpenedModule.over

    def told(self: OpenedModule, feeds: Any) -> OpenedModule:
        given.append({row.tobytes() for feed in feeds for value in feed.values() for row in value})
        return over(self, feeds)

    monkeypatch.setattr(OpenedModule, "over", told)
    monkeypatch.setattr(Reconstruction, "without_branches", lambda *_, **__: ())
    keeps(net, data)
    judges, fitted = given[-2:]
    assert (len(fitted), len(judges)) == (23, 7)
    assert not fitted & judges


@pytest.mark.parametrize(("samples", "expected"), [(40, False), (560, True)])
def test_probabilities_of_classes_are_judged_from_many_samples_only(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, expected: bool
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((samples, 3, 10, 10)).astype(np.float32))
    asked, distance = list[bool](), reconstruct.distance

    def told(*outputs: Any, of_classes: bool) -> float:
        asked.append(of_classes)
        return distance(*outputs, of_classes=of_classes)

    monkeypatch.setattr(reconstruct, "distance", told)
    keeps(net, tmp_path)
    assert len(asked) > 1
    assert set(asked) == {expected}


@pytest.mark.parametrize("cuts", [False, True])
def test_parts_of_the_samples_are_spread_over_all_and_share_none(cuts: bool) -> None:
    feeds = [{"x": np.arange(at, at + 5)[:, None]} for at in range(0, 60, 5)]
    found = [np.concatenate([feed["x"][:, 0] for feed in part]) for part in parts(feeds, (20, 10), cuts=cuts)]
    assert [part.size for part in found] == [20, 10]
    assert not set(found[0]) & set(found[1])
    for part in found:
        assert part.min() < 20
        assert part.max() >= 40


def test_a_network_with_much_work_is_not_tried(net: nn.Module, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "_WORK", 1e3)
    monkeypatch.setattr(Reconstruction, "_rough_error", None)
    assert keeps(net, data)


def test_values_that_are_kept_outlive_a_drop(net: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 10, 10)
    export_onnx(net, (x,), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    output, inputs = model.graph.output[0].name, model.graph.input[0].name
    traced = trace(net, (x,))
    by_file = OnnxStages(model, [{inputs: x.numpy()}], 1 << 20, "the model")
    by_module = ModuleStages(traced, traced.module, [{traced.graph.inputs[0]: x.numpy()}])
    stages: Any
    for stages, name in ((by_file, output), (by_module, traced.graph.outputs[0])):
        stages.keep([name])
        stages.advance([name])
        stages.drop([name])
        stages.advance([name])
        np.testing.assert_allclose(stages.value(name, 0), net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
