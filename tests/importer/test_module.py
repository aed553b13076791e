"""ONNX files as torch modules: the same function at any batch size, or a message that names the node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from prunec.errors import PrunecError, UnsupportedModel
from prunec.frontends.onnx.load import OnnxSource, load_onnx
from prunec.importer.module import ImportedOnnx, to_module
from prunec.pipeline.export import export_onnx
from prunec.runtime.probes import feed
from prunec.runtime.sessions import input_kinds, open_runner

RNG = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(
    op: str, tensors: dict[str, Any], opset: int, shape: tuple[Any, ...] = (1, 4, 6, 5), domain: str = "", **attrs: Any
) -> onnx.ModelProto:
    """One node between two identities, on x; ``tensors`` are its further inputs."""
    nodes = [
        helper.make_node("Identity", ["x"], ["inside"]),
        helper.make_node(op, ["inside", *tensors], ["made"], name="tested", domain=domain, **attrs),
        helper.make_node("Identity", ["made"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = onnx.ValueInfoProto(name="y")
    kept = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items() if array is not None]
    y.type.tensor_type.elem_type = TensorProto.INT64 if op in ("ArgMax", "ArgMin") else TensorProto.FLOAT
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], kept), opset_imports=opsets, ir_version=8)


def run(imported: ImportedOnnx, *arrays: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        found = imported.module(*(torch.from_numpy(array) for array in arrays))
    return [value.numpy() for value in (found if isinstance(found, tuple) else (found,))]


def assert_same(model: onnx.ModelProto, shape: tuple[int, ...] = (1, 4, 6, 5)) -> None:
    """The module agrees with ONNX Runtime on one sample, and three at once are three single ones."""
    imported = to_module(OnnxSource(model))
    runner = open_runner(model.SerializeToString(), "the model", "cpu", optimise=False)
    images = RNG.standard_normal((3, *shape[1:])).astype(np.float32)
    single = [runner({"x": images[index : index + 1]})[0] for index in range(3)]
    (together,) = run(imported, images)
    np.testing.assert_allclose(together, np.concatenate(single), rtol=1e-4, atol=1e-5)


CASES: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    ("Conv", {"w": weights(6, 2, 3, 3), "b": weights(6)}, 11, {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", {"w": weights(6, 4, 3, 3)}, 13, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", {"w": weights(6, 4, 3, 3)}, 13, {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3), "b": weights(3)}, 11,
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3)}, 11, {"strides": [2, 2], "pads": [0, 1, 1, 1]}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3)}, 11, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3)}, 11,
     {"strides": [2, 2], "auto_pad": "VALID", "output_shape": [14, 12]}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3)}, 11, {"strides": [2, 2], "output_shape": [12, 10]}),
    ("Affine", {}, 7, {"alpha": 2.0, "beta": 1.0}),
    ("ScaledTanh", {}, 7, {"alpha": 2.0, "beta": 0.5}),
    ("BatchNormalization", {"g": weights(4), "b": weights(4), "m": weights(4), "v": weights(4) ** 2}, 15, {}),
    ("InstanceNormalization", {"g": weights(4), "b": weights(4)}, 7, {}),
    ("LayerNormalization", {"g": weights(5), "b": weights(5)}, 17, {}),
    ("GroupNormalization", {"g": weights(4), "b": weights(4)}, 21, {"num_groups": 2}),
    ("LRN", {}, 13, {"size": 3}),
    ("MaxPool", {}, 12, {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    ("MaxPool", {}, 12, {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [2, 2]}),
    ("AveragePool", {}, 11, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {}, 11, {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    ("AveragePool", {}, 11, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", {}, 7, {}),
    ("GlobalMaxPool", {}, 7, {}),
    ("Clip", {}, 7, {"min": 0.0, "max": 6.0}),
    ("Clip", {"lo": np.float32(-0.5)}, 13, {}),
    ("LeakyRelu", {}, 16, {"alpha": 0.2}),
    ("HardSigmoid", {}, 6 + 1, {"alpha": 1 / 6, "beta": 0.5}),
    ("HardSigmoid", {}, 7, {}),
    ("HardSwish", {}, 14, {}),
    ("PRelu", {"s": weights(4, 1, 1)}, 16, {}),
    ("Add", {"b": weights(1, 4, 1, 1)}, 13, {}),
    ("Sub", {"b": np.float32(2.5)}, 13, {}),
    ("Mul", {"b": weights(5)}, 13, {}),
    ("Div", {"b": np.float32(3)}, 13, {}),
    ("Softmax", {}, 11, {"axis": 1}),
    ("Softmax", {}, 13, {"axis": 1}),
    ("LogSoftmax", {}, 13, {}),
    ("Reshape", {"s": np.array([1, 2, 2, 6, 5])}, 13, {}),
    ("Reshape", {"s": np.array([1, -1])}, 13, {}),
    ("Reshape", {"s": np.array([0, 0, -1])}, 13, {}),
    ("Flatten", {}, 13, {}),
    ("Transpose", {}, 13, {"perm": [0, 2, 3, 1]}),
    ("Slice", {"s": np.array([1, -1]), "e": np.array([4, -9]), "a": np.array([1, 3]), "t": np.array([1, -1])}, 13, {}),
    ("Gather", {"i": np.array([2, 0, -1])}, 13, {"axis": 1}),
    ("Gather", {"i": np.array(1)}, 13, {"axis": 1}),
    ("Pad", {"p": np.array([0, 1, 0, 2, 0, 0, 1, 0]), "v": np.float32(1.5)}, 13, {}),
    ("Pad", {"p": np.array([0, 0, 1, 2, 0, 0, 1, 0])}, 13, {"mode": "reflect"}),
    ("Tile", {"r": np.array([1, 2, 1, 1])}, 13, {}),
    ("Expand", {"s": np.array([1, 4, 6, 5])}, 13, {}),
    ("DepthToSpace", {}, 13, {"blocksize": 2}),
    ("DepthToSpace", {}, 13, {"blocksize": 2, "mode": "CRD"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}, 13, {"mode": "nearest"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 1.5, 2.4], np.float32)}, 13,
     {"mode": "nearest", "nearest_mode": "ceil"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)}, 13, {"mode": "linear"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)}, 13,
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)}, 13,
     {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    ("Upsample", {"s": np.array([1, 1, 2, 2], np.float32)}, 9, {"mode": "linear"}),
    ("ReduceMean", {}, 13, {"axes": [2, 3], "keepdims": 0}),
    ("ReduceMean", {"a": np.array([-1])}, 18, {}),
    ("ReduceSumSquare", {}, 13, {"axes": [1]}),
    ("ReduceL2", {}, 13, {"axes": [1]}),
    ("ArgMax", {}, 13, {"axis": 1, "keepdims": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "tensors", "opset", "attrs"), CASES, ids=lambda value: str(value)[:40])
def test_each_op_computes_what_onnx_runtime_does(
    op: str, tensors: dict[str, Any], opset: int, attrs: dict[str, Any]
) -> None:
    assert_same(model_of(op, tensors, opset, **attrs))


@pytest.mark.parametrize("attrs", [{"transB": 1}, {"transB": 0, "alpha": 0.5, "beta": 2.0}])
def test_a_gemm_becomes_a_linear_layer(attrs: dict[str, Any]) -> None:
    shape = (3, 7) if attrs["transB"] else (7, 3)
    model = model_of("Gemm", {"w": weights(*shape), "b": weights(3)}, 13, shape=(1, 7), **attrs)
    assert_same(model, (1, 7))
    assert isinstance(to_module(OnnxSource(model)).module.tested, nn.Linear)


def test_a_fused_convolution_keeps_its_activation() -> None:
    attrs = {"activation": "LeakyRelu", "activation_params": [0.3], "pads": [1, 1, 1, 1]}
    assert_same(model_of("FusedConv", {"w": weights(6, 4, 3, 3), "b": weights(6)}, 13, domain="com.microsoft", **attrs))


class Network(nn.Module):
    """A residual block, a concat, a channel shuffle with written-out sizes, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.side, self.head = nn.Conv2d(8, 8, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([(x + self.block(x)).relu(), self.side(x)], 1)
        n, _, h, w = x.shape
        x = x.reshape(n, 2, 8, h, w).transpose(1, 2).reshape(n, 16, h, w)
        return torch.as_tensor(self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)).softmax(1))


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_network_exported_by_torch_comes_back(tmp_path: Path, dynamic: bool) -> None:
    net = Network().eval()
    export_onnx(net, (torch.zeros(1, 3, 8, 8),), tmp_path / "net.onnx", dynamic_batch=dynamic, input_names=["image"])
    imported = to_module(load_onnx(tmp_path / "net.onnx"))
    assert (imported.input_names, imported.output_names) == (("image",), ("output",))
    assert imported.input_shapes == ((3, 8, 8),)
    batch = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(imported.module(batch), net(batch), rtol=1e-5, atol=1e-6)
    assert all(p.requires_grad for p in imported.module.parameters())


def test_an_op_without_a_torch_form_is_named() -> None:
    model = model_of("LSTM", {"w": weights(1, 12, 4), "r": weights(1, 12, 3)}, 14, shape=(1, 2, 4), hidden_size=3)
    with pytest.raises(UnsupportedModel, match=r"node 'tested' \(LSTM, opset 14\) cannot be trained through"):
        to_module(OnnxSource(model))


def test_an_open_size_is_asked_for() -> None:
    model = model_of("Relu", {}, 13, shape=("n", 4, "h", "w"))
    with pytest.raises(PrunecError, match="axis 2 of input 'x' is open"):
        to_module(OnnxSource(model))
    assert to_module(OnnxSource(model), {"": (1, 4, 9, 7)}).input_shapes == ((4, 9, 7),)


@pytest.mark.slow
def test_files_from_the_field_come_back_or_are_refused_by_name(shared_models: Path) -> None:
    done = 0
    for file in sorted(shared_models.glob("*.onnx")):
        runner = open_runner(file, file.name, "cpu", optimise=False)
        kinds = input_kinds(runner, size=224)
        values = feed(kinds, "noise", 0)
        try:
            imported = to_module(load_onnx(file), {kind.name: kind.shape for kind in kinds})
        except UnsupportedModel as error:
            assert "node" in error.what  # noqa: PT017 - either way is fine
            continue
        for a, b in zip(runner(values), run(imported, *(values[name] for name in imported.input_names)), strict=True):
            assert np.abs(a - b).max() <= 5e-3 * max(1e-3, float(np.abs(a).max())), file.name
        done += 1
    assert done >= 17
