"""Deformable convolutions: torchvision's op, or a stand-in with its schema where it is not compiled, and ONNX's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from assertions import outputs_of, relative_error
from modules.blocks import Head, cbr
from modules.networks import silence
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module, prune_onnx
from prunec.ir.plan import PrunePlan
from prunec.passes.channels import channels
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.reading import read_onnx

_LIBRARY: list[torch.library.Library] = []


def _sampled(x: Tensor, offset: Tensor, taps: tuple[int, int], pad: int, mask: Tensor | None) -> Tensor:
    """Return float[N, C, taps, H, W]: the map at each tap's place, zeros beside it (stride 1)."""
    rows, columns = (torch.arange(size, dtype=x.dtype) - pad for size in offset.shape[2:])
    height, width = x.shape[2:]
    parts = []
    for tap in range(taps[0] * taps[1]):
        y = rows[None, :, None] + tap // taps[1] + offset[:, 2 * tap]
        z = columns[None, None, :] + tap % taps[1] + offset[:, 2 * tap + 1]
        grid = torch.stack([2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        part = F.grid_sample(x, grid, align_corners=True)
        parts.append(part if mask is None else part * mask[:, tap : tap + 1])
    return torch.stack(parts, 2)


def _deform(x: Tensor, w: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    groups, masked, pad = rest[6], rest[8], rest[2]
    grids = rest[7]
    masks = mask.chunk(grids, 1) if masked else [None] * grids
    parts = zip(x.chunk(grids, 1), offset.chunk(grids, 1), masks, strict=True)
    maps = torch.cat([_sampled(each, at, (w.shape[2], w.shape[3]), pad, seen) for each, at, seen in parts], 1)
    n, c, taps, height, width = maps.shape
    rows = maps.reshape(n, groups, c // groups * taps, height * width)
    y = torch.einsum("ngkl,gok->ngol", rows, w.reshape(groups, w.shape[0] // groups, -1))
    return y.reshape(n, w.shape[0], height, width) + bias[None, :, None, None]


@pytest.fixture(scope="module", autouse=True)
def _operator() -> None:
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    steps = ", ".join(f"SymInt {name}_{axis}" for name in ("stride", "pad", "dilation") for axis in "hw")
    library.define(
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
        f"{steps}, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor"
    )
    library.impl("deform_conv2d", _deform, "CPU")
    torch.library.register_fake(
        "torchvision::deform_conv2d",
        lambda x, w, offset, *_: x.new_empty(x.shape[0], w.shape[0], *offset.shape[2:]),
        lib=library,
    )
    _LIBRARY.append(library)


class Deformable(nn.Module):
    """Offsets, and a mask, are computed from the map that is sampled."""

    def __init__(self, groups: int, masked: bool) -> None:
        super().__init__()
        self.stem, self.norm, self.last, self.head = cbr(3, 8), nn.BatchNorm2d(8), cbr(8, 8), Head(8)
        self.offset, self.mask = nn.Conv2d(8, 18, 3, padding=1), nn.Conv2d(8, 9, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8 // groups, 3, 3) / 9), nn.Parameter(torch.randn(8))
        self.groups, self.masked = groups, masked

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        mask = torch.sigmoid(self.mask(y)) if self.masked else torch.zeros(1, 1)
        settings = (1, 1, 1, 1, 1, 1, self.groups, 1, self.masked)
        y = torch.ops.torchvision.deform_conv2d(y, self.weight, self.offset(y), mask, self.bias, *settings)
        return self.head(self.last(F.relu(self.norm(y))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("groups", "masked"), [(1, True), (1, False), (2, True)])
def test_a_deformable_convolution_gives_up_zero_inputs_and_its_outputs(groups: int, masked: bool) -> None:
    torch.manual_seed(0)
    net = silence(Deformable(groups, masked))
    with torch.no_grad():
        net.stem[1].bias[net.stem[1].weight == 0] = 0
    x = torch.randn(2, 3, 16, 16)
    exact = prune_module(net, (x,), validate=False)
    assert exact.report.removed_channels >= 4
    assert exact.module.get_parameter("weight").shape[0] < 8
    assert groups > 1 or exact.module.get_parameter("weight").shape[1] < 8
    for size in (16, 21):
        batch = torch.randn(2, 3, size, size)
        assert relative_error(outputs_of(net, batch), outputs_of(exact.module, batch)) <= 1e-5
    again = apply_plan(Deformable(groups, masked).eval(), PrunePlan.from_json(exact.plan.to_json()))
    again.load_state_dict(exact.module.state_dict())
    assert torch.equal(again(x), exact.module(x))
    kept = exact.report.after.params / exact.report.before.params
    lossy = prune_module(net, (x,), criterion="l1", target_params=0.9 * kept, validate=False)
    assert lossy.report.after.params <= 0.9 * exact.report.after.params


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_of_several_grids_go_where_as_many_stay_in_each(groups: int) -> None:
    class Grouped(Deformable):
        def __init__(self, groups: int, masked: bool) -> None:
            super().__init__(groups, masked)
            self.offset, self.mask = nn.Conv2d(8, 36, 3, padding=1), nn.Conv2d(8, 18, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            settings = (1, 1, 1, 1, 1, 1, self.groups, 2, True)
            inputs = (y, self.weight, self.offset(y), self.mask(y).sigmoid(), self.bias)
            y = torch.ops.torchvision.deform_conv2d(*inputs, *settings)
            return self.head(self.last(F.relu(self.norm(y))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = silence(Grouped(groups, masked=True), 0.25)
    with torch.no_grad():
        net.stem[1].weight.copy_(torch.tensor([0.0, 1, 2, 3, 0, 1, 0, 3]))
        net.stem[1].bias[net.stem[1].weight == 0] = 0
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,), validate=False)
    assert result.module.get_parameter("stem.0.weight").shape[0] == 6  # 0 and 4 of eight: 6 has no partner
    assert result.module.get_parameter("weight").shape[1:] == (6 // groups, 3, 3)
    for size in (16, 21):
        batch = torch.randn(2, 3, size, size)
        assert relative_error(outputs_of(net, batch), outputs_of(result.module, batch)) <= 1e-5
    again = apply_plan(Grouped(groups, masked=True).eval(), PrunePlan.from_json(result.plan.to_json()))
    again.load_state_dict(result.module.state_dict())
    assert torch.equal(again(x), result.module(x))
    lossy = prune_module(net, (x,), criterion="l1", target_params=0.4, validate=False)
    assert lossy.module(x).shape == net(x).shape


def _file(path: Path, offset_group: int = 1) -> Path:
    """Write conv -> DeformConv -> conv, its offsets computed from the image."""
    weights = {"a": (4, 3, 1, 1), "off": (18 * offset_group, 3, 1, 1), "w": (6, 4, 3, 3), "b": (6,), "c": (2, 6, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="first"),
        helper.make_node("Conv", ["x", "off"], ["offsets"], name="offsets"),
        helper.make_node("DeformConv", ["y", "w", "offsets", "b"], ["z"], pads=[1] * 4, offset_group=offset_group),
        helper.make_node("Conv", ["z", "c"], ["out"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "deformable",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2, 8, 8])],
        [numpy_helper.from_array(torch.randn(shape).numpy(), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def test_channels_go_into_and_come_out_of_a_deformable_convolution_of_a_file(tmp_path: Path) -> None:
    classes = channels(read_onnx(_file(tmp_path / "one.onnx")).graph)
    members = {(member.param, member.axis): classes.class_of[member.ids].tolist() for member in classes.members}
    assert members["w", 1] == members["a", 0]
    assert members["w", 0] == members["b", 0] == members["c", 1]
    assert not classes.pinned[members["w", 0]].any()
    assert not classes.pinned[members["w", 1]].any()


def test_channels_of_a_files_grids_go_together(tmp_path: Path) -> None:
    path, out = _file(tmp_path / "two.onnx", offset_group=2), tmp_path / "out.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "a":
            array = numpy_helper.to_array(tensor).copy()
            array[[0, 2, 3]] = 0  # 0 and 2 are the first of their grids
            tensor.CopyFrom(numpy_helper.from_array(array, "a"))
    onnx.save(model, path)
    classes = channels(read_onnx(path).graph)
    members = {(member.param, member.axis): classes.class_of[member.ids].tolist() for member in classes.members}
    assert members["a", 0][:2] == members["a", 0][2:]
    prune_onnx(path, out)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(out).graph.initializer}
    assert shapes["a"] == (2, 3, 1, 1)
    assert shapes["w"] == (6, 2, 3, 3)
