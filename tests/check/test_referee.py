"""The referee: rounding is told from mistakes in double precision, for files and for modules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx_models.nets import Net
from onnx_models.single_nodes import CASES, model_of
from torch import nn
from torch.nn import functional as F

from prunec.api import prune_module, prune_onnx
from prunec.check.comparison import gap
from prunec.check.double_onnx import DoubleOnnx
from prunec.check.modules import double_run
from prunec.check.validate import validate_modules, validate_onnx
from prunec.errors import ValidationFailed
from prunec.ir.arrays import Array
from prunec.runtime import sessions
from prunec.runtime.probes import Feed

RNG = np.random.default_rng(5)


# --- files in double precision -------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "tensors", "opset", "attrs"), CASES)
def test_a_node_in_double_precision_is_what_it_is_in_single(
    op: str, tensors: dict[str, Array], opset: int, attrs: dict[str, object]
) -> None:
    model = model_of(op, tensors, opset, **attrs).SerializeToString()
    feed = {"x": RNG.standard_normal((1, 4, 6, 5)).astype(np.float32)}
    expected = sessions.open_runner(model, "the model", "cpu", optimise=False)(feed)
    double = DoubleOnnx(model)
    (found,) = double(feed)
    assert found.shape == expected[0].shape
    assert found.dtype in (np.float64, np.int64)
    assert gap(expected[0].astype(found.dtype), found).over() < 1e-5
    assert not double.single, "it ran in single precision"


def test_what_has_no_double_kernel_and_no_row_runs_in_single_precision() -> None:
    net = Net()
    x = net.op("Sigmoid", net.input("x", [1, 2, 8, 8]))
    net.output(net.op("Resize", x, "", net.const(np.array([1, 1, 1.5, 1.5], np.float32)), mode="cubic"))
    model = net.model().SerializeToString()
    double = DoubleOnnx(model)
    feed = {"x": RNG.standard_normal((1, 2, 8, 8)).astype(np.float32)}
    expected = sessions.open_runner(model, "the model", "cpu", optimise=False)(feed)[0]
    assert gap(expected, double(feed)[0]).over() < 1e-6
    assert dict(double.single) == {"Resize": 1}


def test_sizes_branches_and_casts_are_followed() -> None:
    net = Net()
    x = net.input("x", ["n", 4, "h", "w"])
    lead = net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(2))
    shape = net.op("Concat", lead, net.ints(-1), axis=0)
    flat = net.op("Softmax", net.op("Reshape", net.op("Cast", x, to=TensorProto.FLOAT16), shape), axis=-1)
    net.output(net.op("Cast", flat, to=TensorProto.FLOAT))
    feed = {"x": RNG.standard_normal((2, 4, 3, 5)).astype(np.float32)}
    (found,) = DoubleOnnx(net.model().SerializeToString())(feed)
    exact = F.softmax(torch.from_numpy(feed["x"]).double().reshape(2, 4, 15), -1).numpy()
    assert gap(exact, found).over() < 1e-15


# --- modules in double precision -----------------------------------------------------------------------


class Stubborn(nn.Module):
    """Names single precision wherever it can, keeps a tensor outside its parameters, and writes into its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.rnn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LSTM(8, 5, batch_first=True)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.scale = torch.full((1,), 1.1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.count += 1
        self.seen.add_(1)
        y = self.norm(self.conv(x.float())).to(torch.float32) * self.scale
        padded = torch.zeros(y.shape[0], 8, 8, 8, dtype=torch.float32)
        padded[:, :, :6, :6] = y
        z, _ = self.rnn(padded.flatten(2).transpose(1, 2))
        return z.type(torch.float32), F.linear(z, torch.ones(2, 5) / 3)


def test_a_module_runs_in_double_whatever_it_asks_for_and_is_left_alone() -> None:
    torch.manual_seed(0)
    net = Stubborn().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    found = double_run(net, (x,))({"0": x.numpy()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [array.dtype for array in found] == [np.float64, np.float64]
    expected = net(x)
    assert gap(expected[0].detach().numpy(), found[0]).over() < 1e-5
    # The mean of a hundred runs in single precision would not be this close to a run whose arithmetic is exact.
    net.double()
    net.scale, exact = net.scale.double(), net.norm(net.conv(x.double())) * net.scale.double()
    padded = torch.zeros(2, 8, 8, 8, dtype=torch.float64)
    padded[:, :, :6, :6] = exact
    assert gap(net.rnn(padded.flatten(2).transpose(1, 2))[0].detach().numpy(), found[0]).over() < 1e-14


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_modules_in_half_precision_are_compared(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).to(kind).eval()
    other = nn.Sequential(*net)
    assert validate_modules(net, other, (torch.zeros(1, 3, 8, 8, dtype=kind),)).passed
    wrong = nn.Sequential(*net[:3], nn.Conv2d(8, 2, 1).to(kind))
    assert not validate_modules(net, wrong, (torch.zeros(1, 3, 8, 8, dtype=kind),)).passed


# --- what is rounding ----------------------------------------------------------------------------------


def saturated(path: Path, bias: float = -16.0, head: str = "Sigmoid") -> Path:
    """Write a small face detector: what its head gives is rounding, on every input."""
    net = Net(seed=3)
    x = net.conv(net.input("x", [1, 3, 16, 16]), 3, 16, silent=(0, 3, 5, 6, 9, 12, 14))
    x = net.op("Relu", net.conv(net.op("Relu", x), 16, 16, silent=(1, 2, 5)))
    weight = net.weight(2, 16, 1, 1) * np.float32(0.01)
    logits = net.op("Conv", x, net.const(weight), net.const(np.full(2, bias, np.float32)))
    net.output(net.op(head, logits, axis=1) if head == "Softmax" else net.op(head, logits))
    onnx.save(net.model(), path)
    return path


def as_a_kernel_rounds(runner: sessions.Runner, shift: float) -> object:
    """Return a session whose results are off by an absolute error, as approximations of a sigmoid are."""
    run = runner.session.run

    class Session:
        def run(self, names: object, feed: Feed) -> list[Array]:
            return [output + np.float32(shift) for output in run(names, feed)]

        def __getattr__(self, name: str) -> object:
            return getattr(runner.session, name)

    return Session()


@pytest.mark.parametrize("head", ["Sigmoid", "Softmax", "HardSigmoid", "Exp"])
def test_a_head_that_is_saturated_everywhere_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    opened = sessions.open_runner

    def rounding(model: sessions.Model, *args: object, **kwargs: object) -> sessions.Runner:
        runner = opened(model, *args, **kwargs)  # type: ignore[arg-type]
        is_result = not str(model).endswith("before.onnx")
        return sessions.Runner(runner.name, as_a_kernel_rounds(runner, 6e-8)) if is_result else runner

    before = saturated(tmp_path / "before.onnx", head=head)
    monkeypatch.setattr(sessions, "open_runner", rounding)
    report = prune_onnx(before, tmp_path / "after.onnx", check_time=30)
    assert report.removed_channels > 0
    check = report.validation
    assert check is not None
    assert check.passed
    if head in ("Sigmoid", "Exp"):
        assert check.max_rel_error > 0.1
        assert check.double_rel_error is not None
        assert check.double_rel_error < 1e-5
        assert any("in double" in note for note in check.notes)


@pytest.mark.parametrize("bias", [-16.0, -60.0, -1000.0])
def test_a_mistake_behind_a_saturated_head_is_seen_all_the_same(tmp_path: Path, bias: float) -> None:
    before = saturated(tmp_path / "before.onnx", bias)
    prune_onnx(before, tmp_path / "after.onnx", check_time=30)
    wrong = changed(tmp_path / "after.onnx", tmp_path / "wrong.onnx", place=-1, shift=0.5)
    check = validate_onnx(before, wrong, provider="cpu", runs=0)
    if bias == -16.0:
        assert not check.passed
        assert check.double_rel_error is not None
        assert check.double_rel_error > 0.1


def changed(source: Path, target: Path, place: int, shift: float) -> Path:
    """Write a copy of a file with a number added to the first bias of the ``place``-th convolution: a wrong fold."""
    model = onnx.load(source)
    conv = [node for node in model.graph.node if node.op_type == "Conv"][place]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == conv.input[2])
    array = np.array(numpy_helper.to_array(tensor))
    array += np.float32(shift)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, target)
    return target


def amplifying(path: Path) -> Path:
    """Write a network that single precision computes badly: it magnifies what a subtraction leaves."""
    net = Net(seed=1)
    x = net.conv(net.input("x", [1, 3, 24, 24]), 3, 8, silent=(1, 4, 5))
    large = net.op("Mul", net.op("ReduceMax", net.op("Abs", "x"), keepdims=1), net.const(np.float32(30)))
    x = net.op("Sub", net.op("Add", net.conv(x, 8, 6), large), large)
    net.output(net.op("Sin", net.op("Mul", x, net.const(np.float32(300)))))
    onnx.save(net.model(), path)
    return path


def test_rounding_that_a_network_amplifies_passes_and_both_figures_are_told(tmp_path: Path) -> None:
    before = amplifying(tmp_path / "before.onnx")
    report = prune_onnx(before, tmp_path / "after.onnx")
    check = report.validation
    assert report.removed_channels > 0
    assert check is not None
    assert check.max_rel_error > 1e-4
    assert check.double_rel_error is not None
    assert check.double_rel_error < 1e-4
    assert any(f"{check.double_rel_error:.1e} in double" in note for note in check.notes)
    assert json.loads(json.dumps(report.to_json_dict()))["validation"]["double_rel_error"] == check.double_rel_error


@pytest.mark.parametrize("shift", [1e-2, 1e-3, 1e-4])
def test_a_small_constant_that_was_dropped_is_seen_through_the_rounding(tmp_path: Path, shift: float) -> None:
    """Single precision is off by more than the mistake."""
    before = amplifying(tmp_path / "before.onnx")
    prune_onnx(before, tmp_path / "after.onnx")
    wrong = changed(tmp_path / "after.onnx", tmp_path / "wrong.onnx", place=0, shift=shift)
    check = validate_onnx(before, wrong, provider="cpu", runs=0)
    assert not check.passed
    assert check.double_rel_error is not None
    assert check.double_rel_error > 1e-4
    assert any("no rounding" in note for note in check.notes)


class Amplifying(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        with torch.no_grad():
            self.norm.weight[:4] = 0
            self.norm.bias.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = 30 * x.abs().max()
        return torch.sin(300 * (self.b(torch.relu(self.norm(self.a(x)))) + large - large))


def test_modules_are_decided_in_double_too() -> None:
    torch.manual_seed(0)
    net = Amplifying().eval()
    pruned = prune_module(net, (torch.randn(1, 3, 12, 12),))
    check = pruned.report.validation
    assert pruned.report.removed_channels > 0
    assert check is not None
    assert check.max_rel_error > 1e-4
    assert check.double_rel_error is not None
    assert check.double_rel_error < 1e-4
    with torch.no_grad():
        pruned.module.get_parameter("a.bias").add_(1e-3)
    wrong = validate_modules(net, pruned.module, (torch.randn(1, 3, 12, 12),), tolerance=1e-4)
    assert not wrong.passed
    assert wrong.double_rel_error is not None


# --- what is said --------------------------------------------------------------------------------------


def test_a_plan_that_is_wrong_in_double_too_is_prunecs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunec.backends.onnx import backend

    really = backend.apply_onnx

    def wrong(*args: object) -> object:
        result = really(*args)  # type: ignore[arg-type]
        for tensor in result.model.graph.initializer:
            array = np.array(result.array(tensor))
            if array.ndim == 1 and array.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(array + np.float32(0.1), tensor.name))
        return result

    monkeypatch.setattr(backend, "apply_onnx", wrong)
    with pytest.raises(ValidationFailed) as caught:
        prune_onnx(amplifying(tmp_path / "before.onnx"), tmp_path / "after.onnx")
    assert "in double precision" in str(caught.value)
    assert "please report" in str(caught.value)
    assert not (tmp_path / "after.onnx").exists()


def test_what_double_precision_cannot_decide_is_not_called_prunecs_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> list[Array]:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(DoubleOnnx, "__call__", fails)
    with pytest.raises(ValidationFailed) as caught:
        prune_onnx(amplifying(tmp_path / "before.onnx"), tmp_path / "after.onnx")
    assert "no such kernel" in str(caught.value)
    assert "please report" not in str(caught.value)


def test_an_output_of_another_type_fails() -> None:
    class Wide(nn.Module):
        def __init__(self, kind: torch.dtype) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(self.kind)

    with pytest.raises(ValidationFailed, match="another type") as caught:
        validate_modules(Wide(torch.float32), Wide(torch.float64), (torch.zeros(2, 3),))
    assert caught.value.why == "float32 against float64"
