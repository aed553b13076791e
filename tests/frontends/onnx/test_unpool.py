"""MaxUnpool in files: channels of a pool, of its indices and of the unpooled map go together, or are pinned by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunec.api import analyze_onnx, prune_onnx

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def net(spatial: int = 2, *, size: int | str = 8, told: bool = False, index_out: bool = False) -> onnx.ModelProto:
    """SegNet in small: conv, pool, conv, unpool, conv; three channels of the first two convolutions are zero."""
    draw = np.random.default_rng(spatial)
    kernel = [3] * spatial
    stored = {
        "w1": draw.standard_normal((8, 3, *kernel)),
        "w2": draw.standard_normal((8, 8, *kernel)),
        "w3": draw.standard_normal((2, 8, *kernel)),
        "b1": draw.standard_normal(8),
        "b2": draw.standard_normal(8),
    }
    for weight, bias in (("w1", "b1"), ("w2", "b2")):
        stored[weight][:3] = 0
        stored[bias][:3] = 0
    arrays = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()]
    window = {"kernel_shape": [2] * spatial, "strides": [2] * spatial}
    if told:
        arrays.append(numpy_helper.from_array(np.array([1, 8, *[size] * spatial]), "shape"))
    pads = {"pads": [1] * 2 * spatial}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first", **pads),
        helper.make_node("MaxPool", ["a"], ["p", "at"], "pool", **window),
        helper.make_node("Conv", ["p", "w2", "b2"], ["c"], "second", **pads),
        helper.make_node("MaxUnpool", ["c", "at", *(["shape"] if told else [])], ["u"], "unpool", **window),
        helper.make_node("Conv", ["u", "w3"], ["y"], "last", **pads),
    ]
    sizes = [1, 3, *[size] * spatial]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if index_out:
        outputs.append(helper.make_tensor_value_info("at", TensorProto.INT64, None))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)
    graph = helper.make_graph(nodes, "net", [x], outputs, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def outputs(path: Path, size: int, spatial: int) -> Array:
    x = np.random.default_rng(5).standard_normal((1, 3, *[size] * spatial)).astype(np.float32)
    (y, *_) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_channels_of_an_unpooled_map_go_with_those_of_its_pool(spatial: int, tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(net(spatial), before)
    assert prune_onnx(before, after).removed_channels == 6
    np.testing.assert_allclose(outputs(after, 8, spatial), outputs(before, 8, spatial), rtol=1e-4, atol=1e-3)
    weights = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(after).graph.initializer}
    assert weights["w1"][0] == weights["w2"][0] == weights["w2"][1] == weights["w3"][1] == 5


def test_unpooled_channels_go_by_score(tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(net(), before)
    report = prune_onnx(before, after, criterion="l1", target_macs=0.4)
    assert report.after.macs <= 0.4 * report.before.macs
    assert outputs(after, 8, 2).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    "options",
    [{"size": 9}, {"size": "n"}, {"told": True}, {"index_out": True}],
    ids=["another size comes back", "an open size", "a shape that is told", "the indices are an output"],
)
def test_indices_that_may_count_otherwise_keep_their_channels(options: dict[str, object], tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(net(**options), before)  # type: ignore[arg-type]
    pins = {pin.node: pin.reason for pin in analyze_onnx(before).pins}
    assert "channels" in pins["pool"]
    if options.get("size") == 9:
        return  # its indices lie outside of the map: ONNX Runtime refuses to run it
    prune_onnx(before, after)
    size = options.get("size", 8)
    size = size if isinstance(size, int) else 8
    np.testing.assert_allclose(outputs(after, size, 2), outputs(before, size, 2), rtol=1e-4, atol=1e-3)
