"""Comparing two models: what counts as an error, what inputs are tried, what is said."""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models.conv import save_conv
from onnx_models.nets import Net
from torch import nn

from prunec.check import pair
from prunec.check.comparison import gap
from prunec.check.validate import validate_module_against_onnx, validate_modules, validate_onnx
from prunec.errors import BadInput, UnsupportedModel, ValidationFailed
from prunec.ir.arrays import Array
from prunec.runtime import sessions
from prunec.runtime.modules import evaluating
from prunec.runtime.probes import FAMILIES, Feed, InputKind, feed


def _save(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[int | str]]], outputs: list[str]
) -> Path:
    values = [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    for result in results:
        result.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(nodes, "g", values, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_a_model_agrees_with_itself_exactly(conv_file: Path) -> None:
    result = validate_onnx(conv_file, conv_file, provider="cpu", runs=0)
    assert (result.max_abs_error, result.max_rel_error) == (0, 0)
    assert result.passed
    assert not result.vacuous
    assert set(FAMILIES) <= set(result.families)


def test_a_relative_error_is_the_largest_gap_over_the_largest_magnitude(conv_file: Path, tmp_path: Path) -> None:
    other = save_conv(tmp_path / "other.onnx", scale=1.01)
    result = validate_onnx(conv_file, other, provider="cpu", runs=0)
    assert result.max_rel_error == pytest.approx(0.01, rel=1e-3)
    assert not result.passed
    assert validate_onnx(conv_file, other, provider="cpu", runs=0, tolerance=0.02).passed


def test_open_sizes_are_tried_at_two_values(conv_file: Path) -> None:
    assert "image, other size" in validate_onnx(conv_file, conv_file, provider="cpu", runs=0).families


def test_an_open_channel_axis_gets_what_the_first_convolution_takes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="conv"),
    ]
    path = _save(tmp_path / "five.onnx", nodes, {"x": (TensorProto.FLOAT, ["n", "c", "h", "w"])}, ["y"])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 5, 3, 3), dtype=np.float32), "w"))
    onnx.save(model, path)
    assert validate_onnx(path, path, provider="cpu", runs=0).max_rel_error == 0


def in_half(path: Path, order: list[int], factor: float = 1.0) -> Path:
    """Write a network of float32 inputs, outputs and weights that multiplies in float16, its channels in ``order``."""
    net = Net()
    first, second = net.weight(16, 64), net.weight(64, 4) * np.float32(factor)
    x = net.op("Cast", net.input("x", [1, 9, 16]), to=TensorProto.FLOAT16)
    for weight in (first[:, order], second[order]):
        x = net.op("MatMul", x, net.op("Cast", net.const(weight), to=TensorProto.FLOAT16))
    net.output(net.op("Cast", x, to=TensorProto.FLOAT))
    onnx.save(net.model(), path)
    return path


def test_a_model_that_computes_in_half_precision_is_judged_in_double(tmp_path: Path) -> None:
    original = in_half(tmp_path / "a.onnx", list(range(64)))
    turned = validate_onnx(original, in_half(tmp_path / "b.onnx", list(range(64))[::-1]), provider="cpu", runs=0)
    assert turned.passed
    other = validate_onnx(original, in_half(tmp_path / "c.onnx", list(range(64)), 1.003), provider="cpu", runs=0)
    assert other.double_rel_error == pytest.approx(3e-3, rel=0.01)
    assert not other.passed


def test_a_second_model_with_a_hard_coded_size_fails(conv_file: Path, tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "Constant", [], ["s"], value=helper.make_tensor("s", TensorProto.INT64, [4], [1, 3, 224, 224])
        ),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    fixed = _save(tmp_path / "fixed.onnx", nodes, {"x": (TensorProto.FLOAT, ["n", 3, "h", "w"])}, ["y"])
    identity = _save(
        tmp_path / "free.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 3, "h", "w"])},
        ["y"],
    )
    with pytest.raises(ValidationFailed, match="does not run on an input that the first accepts"):
        validate_onnx(identity, fixed, provider="cpu", runs=0)


def test_an_output_of_another_shape_fails_with_both_shapes(tmp_path: Path) -> None:
    inputs: dict[str, tuple[int, list[int | str]]] = {"x": (TensorProto.FLOAT, [2, 3])}
    a = _save(tmp_path / "a.onnx", [helper.make_node("Identity", ["x"], ["y"])], inputs, ["y"])
    b = _save(tmp_path / "b.onnx", [helper.make_node("Transpose", ["x"], ["y"])], inputs, ["y"])
    with pytest.raises(ValidationFailed, match="another shape") as caught:
        validate_onnx(a, b, provider="cpu", runs=0)
    assert caught.value.why == "(2, 3) against (3, 2)"


def test_an_output_that_never_changes_is_called_vacuous(tmp_path: Path) -> None:
    dead = save_conv(tmp_path / "dead.onnx", scale=0.0, bias=-1.0)
    result = validate_onnx(dead, dead, provider="cpu", runs=0)
    assert result.vacuous
    assert any("proves nothing" in note for note in result.notes)


def test_an_output_that_vanishes_is_measured_against_what_it_is_for_other_inputs(tmp_path: Path) -> None:
    paths = []
    for number, residue in enumerate((0.0, 1e-9)):
        net = Net()
        x = net.input("x", [1, 3, 8, 8])
        bright = net.op("Relu", net.op("Sub", x, net.const(np.float32(150))))  # 0 for all inputs but pixels
        net.output(net.op("Add", bright, net.const(np.float32(residue))))
        paths.append(tmp_path / f"{number}.onnx")
        onnx.save(net.model(), paths[-1])
    result = validate_onnx(*paths, provider="cpu", runs=0)
    assert result.passed
    assert 0 < result.families["image"] < 1e-6
    assert not result.vacuous


def test_a_number_as_an_input_is_fed(tmp_path: Path) -> None:
    net = Net()
    rate = net.op("Cast", net.input("rate", [], TensorProto.INT64), to=TensorProto.FLOAT)
    net.output(net.op("Mul", net.input("x", [1, 8]), net.op("Add", rate, net.input("gain", []))))
    onnx.save(net.model(), tmp_path / "net.onnx")
    assert validate_onnx(tmp_path / "net.onnx", tmp_path / "net.onnx", provider="cpu", runs=1).passed


def test_kinds_of_input_that_the_original_does_not_take_are_left_out(tmp_path: Path) -> None:
    """Numbers of tokens that come as floats: 243 is one too many."""
    net = Net()
    tokens = net.op("Cast", net.op("Abs", net.input("x", [1, 8])), to=TensorProto.INT64)
    net.output(net.op("Gather", net.const(net.weight(20, 4)), tokens))
    path = tmp_path / "net.onnx"
    onnx.save(net.model(), path)
    result = validate_onnx(path, path, provider="cpu", runs=1)
    assert result.passed
    assert {"noise", "flat"} <= result.families.keys()
    assert "pixels" not in result.families
    assert any("'pixels'" in note for note in result.notes)
    with pytest.raises(BadInput, match="does not run on the given inputs"):
        validate_onnx(path, path, provider="cpu", runs=0, inputs=[{"x": np.full((1, 8), 99, np.float32)}])


def amplifying(path: Path, order: list[int], error: float = 0.0) -> Path:
    """Write a network that makes the rounding of a sum over 64 channels, taken in ``order``, into large differences."""
    net = Net()
    first, second = net.weight(16, 64), net.weight(64, 4)
    second[0] += np.float32(error)
    x = net.op("MatMul", net.input("x", [1, 9, 16]), net.const(first[:, order]))
    x = net.op("MatMul", net.op("Tanh", x), net.const(second[order]))
    net.output(net.op("Sin", net.op("Mul", x, net.const(np.float32(1e4)))))
    onnx.save(net.model(), path)
    return path


def test_what_the_last_bits_of_the_input_change_is_rounding(tmp_path: Path) -> None:
    one = amplifying(tmp_path / "one.onnx", list(range(64)))
    other = amplifying(tmp_path / "other.onnx", list(range(64))[::-1])
    result = validate_onnx(one, other, provider="cpu", runs=0)
    assert result.max_rel_error > 1e-4
    assert result.passed
    assert any("rounding" in note for note in result.notes)


def test_a_difference_beyond_rounding_fails_in_a_network_that_amplifies(tmp_path: Path) -> None:
    one = amplifying(tmp_path / "one.onnx", list(range(64)))
    other = amplifying(tmp_path / "other.onnx", list(range(64)), error=1e-4)
    assert not validate_onnx(one, other, provider="cpu", runs=0).passed


def test_the_original_is_run_anew_once_per_input_however_many_outputs_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[str] = Counter()
    run = sessions.Runner.__call__

    def counted(runner: sessions.Runner, values: Feed) -> list[Array]:
        runs[Path(runner.name).stem[:1]] += 1
        return run(runner, values)

    monkeypatch.setattr(sessions.Runner, "__call__", counted)
    found = []
    for outputs in (1, 8):
        for name in "ab":
            net = Net()
            x = net.input("x", [1, 3, 8, 8])
            for _ in range(outputs):
                net.output(net.op("Mul", x, net.const(np.float32({"a": 1.0, "b": 1.1}[name]))))
            onnx.save(net.model(), tmp_path / f"{name}{outputs}.onnx")
        runs.clear()
        result = validate_onnx(tmp_path / f"a{outputs}.onnx", tmp_path / f"b{outputs}.onnx", provider="cpu", runs=0)
        assert not result.passed
        found.append(dict(runs))
    assert found[0] == found[1]
    assert found[0]["a"] <= 1 + 3 * found[0]["b"]  # finding an input; each, then optimised, then with other last bits


def test_latency_is_measured_for_both_and_left_out_on_request(conv_file: Path) -> None:
    timed = validate_onnx(conv_file, conv_file, provider="cpu", runs=3)
    assert timed.latency_a_ms is not None
    assert timed.latency_a_ms > 0
    assert timed.latency_ratio is not None
    assert timed.latency_ratio > 0
    assert validate_onnx(conv_file, conv_file, provider="cpu", runs=0).latency_ratio is None


@pytest.fixture
def opened_sessions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Return a list that grows with each session: whether it optimises, and how many others are open then."""
    opened: list[weakref.ref[Any]] = []
    found: list[tuple[bool, int]] = []
    really = sessions.open_runner

    def noted(*args: Any, **kwargs: Any) -> sessions.Runner:
        gc.collect()
        found.append((kwargs["optimise"], sum(session() is not None for session in opened)))
        runner = really(*args, **kwargs)
        opened.append(weakref.ref(runner.session))
        return runner

    monkeypatch.setattr(sessions, "open_runner", noted)
    return found


def test_comparing_and_timing_share_their_sessions(conv_file: Path, opened_sessions: list[tuple[bool, int]]) -> None:
    assert validate_onnx(conv_file, conv_file, provider="cpu", runs=2).timed_runs == 2
    assert opened_sessions == [(True, 0), (True, 1)]


def test_what_differs_is_compared_without_optimisation(tmp_path: Path, opened_sessions: list[tuple[bool, int]]) -> None:
    a, b = (save_conv(tmp_path / f"{scale}.onnx", scale=scale) for scale in (1.0, 1.5))
    assert not validate_onnx(a, b, provider="cpu", runs=1).passed
    assert sorted(optimised for optimised, _ in opened_sessions) == [False, False, True, True]


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_large_models_are_opened_one_at_a_time(
    tmp_path: Path, opened_sessions: list[tuple[bool, int]], monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    a, b = save_conv(tmp_path / "a.onnx"), save_conv(tmp_path / "b.onnx", scale=scale)
    together = validate_onnx(a, b, provider="cpu", runs=2)
    opened_sessions.clear()
    monkeypatch.setattr(pair, "LARGE_BYTES", 1)
    alone = validate_onnx(a, b, provider="cpu", runs=2)
    assert [others for optimised, others in opened_sessions if optimised] == [0, 0]
    assert max(others for _, others in opened_sessions) <= 1
    assert alone.timed_runs == 2
    assert alone.passed == (scale == 1.0)
    assert alone.families == together.families


def test_a_model_may_be_given_as_bytes(conv_file: Path) -> None:
    assert validate_onnx(conv_file, conv_file.read_bytes(), provider="cpu", runs=0).passed


def test_cuda_that_is_not_there_falls_back_with_one_sentence(
    conv_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sessions, "num_cuda_devices", lambda: 0)
    result = validate_onnx(conv_file, conv_file, provider="cuda", runs=0)
    assert result.provider_asked == "cuda"
    assert result.provider_ran == "cpu"
    assert len([note for note in result.notes if "CPU" in note]) == 1
    assert capfd.readouterr() == ("", "")


def test_a_cuda_provider_that_cannot_be_loaded_is_noticed_and_silent(
    conv_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A device without working libraries: what ran is read from the session."""
    if sessions.num_cuda_devices() > 0:
        pytest.skip("CUDA works here")
    monkeypatch.setattr(sessions, "choose_provider", lambda asked: sessions.Provider("cuda"))
    result = validate_onnx(conv_file, conv_file, provider="auto", runs=0)
    assert result.provider_ran == "cpu"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07"])
def test_a_file_that_is_no_model_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises((BadInput, UnsupportedModel), match=r"x\.onnx"):
        validate_onnx(tmp_path / "x.onnx", tmp_path / "x.onnx", provider="cpu")


def test_models_with_other_inputs_or_outputs_are_not_compared(conv_file: Path, tmp_path: Path) -> None:
    inputs: dict[str, tuple[int, list[int | str]]] = {"z": (TensorProto.FLOAT, [2, 3])}
    other = _save(tmp_path / "b.onnx", [helper.make_node("Identity", ["z"], ["y"])], inputs, ["y"])
    with pytest.raises(BadInput, match="different inputs"):
        validate_onnx(conv_file, other, provider="cpu")
    renamed = onnx.load(conv_file)
    renamed.graph.output[0].name = "z"
    renamed.graph.node[1].output[0] = "z"
    with pytest.raises(BadInput, match="different outputs"):
        validate_onnx(conv_file, renamed.SerializeToString(), provider="cpu")


def test_a_shape_that_the_model_forbids_is_told_with_what_it_says(conv_file: Path) -> None:
    with pytest.raises(BadInput) as caught:
        validate_onnx(conv_file, conv_file, provider="cpu", input_shapes={"x": (1, 4, 8, 8)})
    assert str(caught.value) == (
        "error[bad-input]: input 'x' cannot be 1x4x8x8\n  why: the model says ?x3x?x?\n  do:  change --input-shape"
    )


def test_an_unknown_input_name_lists_the_names(conv_file: Path) -> None:
    with pytest.raises(BadInput, match="no input 'images'") as caught:
        validate_onnx(conv_file, conv_file, provider="cpu", input_shapes={"images": (1, 3, 8, 8)})
    assert caught.value.why == "its inputs: x"


def test_integer_indices_into_a_short_table_are_found(tmp_path: Path) -> None:
    table = helper.make_tensor("t", TensorProto.FLOAT, [2, 3], [1, 2, 3, 4, 5, 6])
    nodes = [helper.make_node("Constant", [], ["t"], value=table), helper.make_node("Gather", ["t", "i"], ["y"])]
    path = _save(tmp_path / "g.onnx", nodes, {"i": (TensorProto.INT64, [5])}, ["y"])
    assert validate_onnx(path, path, provider="cpu", runs=0).passed


def test_inputs_that_are_not_numbers_are_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["s"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("s", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "s.onnx")
    with pytest.raises(UnsupportedModel, match="input 's'"):
        validate_onnx(tmp_path / "s.onnx", tmp_path / "s.onnx", provider="cpu")


@pytest.mark.parametrize(
    ("a", "b", "relative"),
    [
        ([1.0, -2.0], [1.0, -2.0], 0.0),
        ([1.0, -2.0], [1.5, -2.0], 0.25),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([0.0, 1.0], [np.nan, 1.0], np.inf),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
    ],
)
def test_difference_of_floats(a: list[float], b: list[float], relative: float) -> None:
    assert gap(np.array(a), np.array(b)).over() == relative


def test_labels_may_flip_at_a_tie_and_not_more() -> None:
    a = np.zeros(10_000, dtype=np.int64)
    few, many = a.copy(), a.copy()
    few[:5] = 1
    many[:50] = 1
    assert gap(a, few).over() <= gap(a, few).allowed(1e-4)
    assert gap(a, many).over() > gap(a, many).allowed(1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int64", "bool"])
@pytest.mark.parametrize("shape", [(1, 3, 17, 32), (4,), (), (2, 0, 3), (1, 1, 1, 1)])
def test_inputs_have_the_shape_and_dtype_and_repeat(family: str, dtype: str, shape: tuple[int, ...]) -> None:
    kind = InputKind("x", shape, dtype)
    first, second = feed([kind], family, seed=3)["x"], feed([kind], family, seed=3)["x"]
    assert first.shape == shape
    assert first.dtype == dtype
    assert np.array_equal(first, second)
    assert np.isfinite(first.astype(np.float64)).all()


def test_another_seed_gives_another_input() -> None:
    kind = InputKind("x", (1, 3, 8, 8), "float32")
    assert not np.array_equal(feed([kind], "noise", 0)["x"], feed([kind], "noise", 1)["x"])


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.norm(self.conv(x))
        return {"map": y, "mean": self.drop(y.mean((2, 3)))}


def test_modules_are_compared_in_eval_mode_and_left_as_they_were() -> None:
    torch.manual_seed(0)
    a = _Net()
    b = _Net()
    b.load_state_dict(a.state_dict())
    a.norm.eval()
    result = validate_modules(a, b, (torch.zeros(2, 3, 8, 8),), sizes=[(11, 5)])
    assert result.max_rel_error == 0
    assert "image 11x5" in result.families
    assert a.training
    assert not a.norm.training
    assert b.norm.training


def test_modules_that_differ_fail() -> None:
    torch.manual_seed(0)
    assert not validate_modules(_Net(), _Net(), (torch.zeros(2, 3, 8, 8),)).passed


def test_a_module_is_compared_with_its_export(tmp_path: Path) -> None:
    from prunec.pipeline.export import export_onnx

    torch.manual_seed(0)
    net = _Net()
    example = (torch.zeros(2, 3, 8, 8),)
    export_onnx(net, example, tmp_path / "n.onnx")
    assert validate_module_against_onnx(net, tmp_path / "n.onnx", example).passed
    assert not validate_module_against_onnx(_Net(), tmp_path / "n.onnx", example).passed


def test_eval_mode_ends_when_the_block_fails() -> None:
    net = _Net()
    with pytest.raises(RuntimeError, match="x"), evaluating(net):
        raise RuntimeError("x")
    assert net.training


def test_a_validation_with_an_infinite_error_is_still_json() -> None:
    from prunec.report.findings import Validation

    document = Validation(float("inf"), float("nan"), 1e-4, {"noise": float("inf")}, passed=False).to_json_dict()
    assert json.loads(json.dumps(document, allow_nan=False))["max_rel_error"] is None


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_device_that_fails_in_the_middle_is_named_and_the_cpu_goes_on(
    conv_file: Path, monkeypatch: pytest.MonkeyPatch, asked: Any
) -> None:
    """Without memory left, or with a driver that does not fit, the model seemed to run on no input at all."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(real.session, name)

        def run(self, *_: Any) -> Any:
            raise RuntimeError("CUDA error cudaErrorMemoryAllocation:out of memory")

    real = sessions.open_runner(conv_file, "it", "cpu", optimise=True)
    as_it_is = sessions.open_runner

    def opening(model: Any, name: str, provider: Any, **given: Any) -> sessions.Runner:
        return sessions.Runner(name, Broken()) if provider == "cuda" else as_it_is(model, name, provider, **given)

    monkeypatch.setattr(sessions, "open_runner", opening)
    monkeypatch.setattr(sessions, "choose_provider", lambda asked: sessions.Provider("cuda"))
    result = validate_onnx(conv_file, conv_file, provider=asked, runs=0)
    assert result.passed
    assert result.provider_ran == "cpu"
    assert result.notes[0].startswith("the CUDA provider failed (CUDA error cudaErrorMemoryAllocation")


@pytest.mark.gpu
def test_cuda_really_runs_where_it_works(conv_file: Path) -> None:
    assert validate_onnx(conv_file, conv_file, provider="cuda").provider_ran == "cuda"
