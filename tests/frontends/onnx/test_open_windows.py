"""Open sizes behind convolutions and pools have names, by which equal ones are known to be equal."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from prunec.api import prune_onnx
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx
from prunec.pipeline.export import export_onnx
from tests.fitting.test_branches import residual

SETTINGS: list[dict[str, Any]] = [
    {"kernel_shape": [k, 1], "strides": [s, 1], "dilations": [d, 1], **pads}
    for k, s, d, pads in itertools.product(
        (1, 2, 3),
        (1, 2, 3),
        (1, 2),
        ({"pads": [0, 0, 0, 0]}, {"pads": [1, 0, 1, 0]}, {"pads": [0, 0, 2, 0]}, {"auto_pad": "SAME_UPPER"}, {}),
    )
    if d == 1 or "auto_pad" not in pads
]


def value_of(formula: Any, height: int) -> int:
    """Compute a size from its name."""
    text = re.sub(r"\bh\b", str(height), str(formula)).replace("[", "(").replace("]", ")").replace("/", "//")
    return int(eval(text))


def runs_as_pool(settings: dict[str, Any]) -> bool:
    """Tell whether ONNX Runtime takes it: pools want paddings smaller than their kernel, and none that are negative."""
    taps, stride = settings["kernel_shape"][0], settings["strides"][0]
    return max(settings.get("pads", [0])) < taps and ("auto_pad" not in settings or taps >= stride)


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
def test_the_name_of_a_size_is_its_formula(op: str, tmp_path: Path) -> None:
    nodes, outputs = [], []
    weights = [
        helper.make_tensor(f"w{k}", TensorProto.FLOAT, [2, 2, k, 1], np.ones(4 * k, np.float32)) for k in (1, 2, 3)
    ]
    chosen = [each for each in SETTINGS if op == "Conv" or runs_as_pool(each)]
    for at, settings in enumerate(chosen):
        reads = ["x", f"w{settings['kernel_shape'][0]}"] if op == "Conv" else ["x"]
        nodes.append(helper.make_node(op, reads, [f"y{at}"], **settings))
        outputs.append(helper.make_tensor_value_info(f"y{at}", TensorProto.FLOAT, None))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, "h", 4])
    graph = helper.make_graph(nodes, "g", [x], outputs, weights if op == "Conv" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    values = trace_onnx(load_onnx(tmp_path / "net.onnx")).graph.values
    named = {name: values[name].shape[2] for name in (f"y{at}" for at in range(len(chosen)))}  # type: ignore[index]
    assert not any(str(size).startswith("unk") for size in named.values())
    session = ort.InferenceSession(model.SerializeToString())
    for height in (7, 8, 9, 16):
        found = session.run(list(named), {"x": np.ones((1, 2, height, 4), np.float32)})
        wanted = {name: array.shape[2] for name, array in zip(named, found, strict=True)}
        assert {name: value_of(size, height) for name, size in named.items()} == wanted


def test_a_branch_that_is_constant_goes_from_a_file_whose_images_may_have_any_size(tmp_path: Path) -> None:
    net = residual(idle=())
    with torch.no_grad():
        for at in (2, 4):
            net[at].bn2.weight.zero_()
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    export_onnx(net, (torch.zeros(1, 3, 12, 12),), tmp_path / "net.onnx", input_names=["x"], open_axes=axes)
    report = prune_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx")
    assert report.exact
    assert sum(not layer.after for layer in report.layers) == 4
    before, after = (ort.InferenceSession(str(tmp_path / name)) for name in ("net.onnx", "out.onnx"))
    for sizes in ((1, 3, 12, 12), (2, 3, 17, 9), (1, 3, 5, 30)):
        x = {"x": np.random.default_rng(0).standard_normal(sizes).astype(np.float32)}
        np.testing.assert_allclose(after.run(None, x)[0], before.run(None, x)[0], rtol=1e-3, atol=1e-4)
