"""The FX frontend: what is traced, how calls of every spelling become canonical ops, what it says when it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from assertions import assert_same_function
from modules.blocks import shuffle
from modules.networks import NETWORKS, make
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunec.api import prune_module
from prunec.errors import BadInput, UntraceableModel
from prunec.frontends.fx.frontend import trace
from prunec.frontends.fx.running.untouched import Untouched
from prunec.frontends.fx.traced import Ref, Traced
from prunec.frontends.fx.tracing import export as fx_export
from prunec.ir.graph import Graph


class Function(nn.Module):
    """A module whose forward is a plain function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def image(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 3, 8, 8))


def ops_of(module: nn.Module, *shape: int) -> list[str]:
    return [node.op for node in trace(module.eval(), (image(*shape),)).graph.nodes]


# --- whole networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_of_a_network_is_seen(name: str) -> None:
    net = make(name)
    traced = trace(net, NETWORKS[name].inputs())
    read = {n for n in traced.graph.params if not n.startswith(("literal:", "constant:"))}
    assert {n for n, _ in net.named_parameters()} <= read
    assert not traced.exported
    for n, parameter in net.named_parameters():
        assert traced.graph.params[n].shape == tuple(parameter.shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_traced_value_has_the_shape_of_a_real_run(name: str) -> None:
    net = make(name)
    inputs = NETWORKS[name].inputs()
    traced = trace(net, inputs)
    found: dict[str, tuple[int, ...]] = {}

    class Shapes(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            ref = traced.results.get(n.name)
            if isinstance(ref, Ref) and isinstance(result, Tensor) and ref.name in traced.graph.values:
                found[ref.name] = tuple(result.shape)
            return result

    with torch.no_grad():
        Shapes(traced.module).run(*inputs)
    assert found
    assert {n: traced.graph.values[n].shape for n in found} == found


def test_inputs_and_outputs_keep_their_order() -> None:
    graph = trace(make("two_inputs"), NETWORKS["two_inputs"].inputs()).graph
    assert graph.inputs == ("x", "y")
    assert [graph.values[name].shape for name in graph.outputs] == [(2, 2, 16, 16), (2, 10), (2, 10)]


def test_the_module_is_left_as_it_was() -> None:
    net = make("resnet18")
    net.train()
    net.get_submodule("2.bn1").eval()
    for parameter in net[0].parameters():
        parameter.requires_grad = False
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    trace(net, NETWORKS["resnet18"].inputs())
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net[0][0].weight.requires_grad
    assert net.get_submodule("2.conv1").weight.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_names_are_the_same_on_every_run() -> None:
    first, second = (trace(make("googlenet"), NETWORKS["googlenet"].inputs()).graph.text() for _ in range(2))
    assert first == second


def test_a_batch_of_one_is_traced_with_a_batch_that_is_told_apart_from_broadcasting() -> None:
    graph = trace(make("resnet20"), NETWORKS["resnet20"].inputs(batch=1)).graph
    assert graph.values[graph.inputs[0]].shape == (3, 3, 16, 16)


def test_what_only_export_reads_runs_at_any_batch_when_the_example_has_one() -> None:
    net = make("export_only")
    result = prune_module(net, NETWORKS["export_only"].inputs(batch=1), validate=False)
    for batch in (1, 4):
        assert_same_function(net, result.module, *NETWORKS["export_only"].inputs(batch=batch, grow=4))


def test_export_gives_up_open_sizes_that_take_too_long_and_keeps_the_batch_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fx_export, "_OPEN_SECONDS", 0.0)
    net = make("export_only")
    result = prune_module(net, NETWORKS["export_only"].inputs(), validate=False)
    assert_same_function(net, result.module, *NETWORKS["export_only"].inputs(batch=5))


def test_sizes_stay_open_however_long_other_work_keeps_the_trace_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fx_export, "_OPEN_SECONDS", 4.0)
    net = make("export_only")
    stem = next(sub for sub in net.modules() if isinstance(sub, nn.Conv2d))
    stem.register_forward_pre_hook(lambda *_: time.sleep(5) if torch.compiler.is_exporting() else None)
    inputs = NETWORKS["export_only"].inputs()
    traced = fx_export.export(net, inputs, None, Untouched(net))
    assert traced(*NETWORKS["export_only"].inputs(grow=4)).shape == net(*NETWORKS["export_only"].inputs(grow=4)).shape


def test_a_forward_with_a_hard_coded_batch_of_one_is_traced_as_it_is() -> None:
    graph = trace(Function(lambda x: x.view(1, 192)), (image(1, 3, 8, 8),)).graph
    assert graph.values[graph.outputs[0]].shape == (1, 192)


def test_optional_arguments_keep_their_defaults() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, scale: float = 2.0, extra: Tensor | None = None) -> Tensor:
            return x * scale if extra is None else x + extra

    traced = trace(Optional(), (image(),))
    assert [node.op for node in traced.graph.nodes] == ["mul"]
    assert not traced.exported


# --- spellings ----------------------------------------------------------------------------------------

SPELLINGS: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "in-place relu": (lambda x: F.relu_(x + 1), ["add", "relu"]),
    "in-place add": (lambda x: torch.relu(x).add_(x), ["relu", "add"]),
    "inplace argument": (lambda x: F.relu(x * 2, inplace=True), ["mul", "relu"]),
    "chunk": (lambda x: x.chunk(3, 1)[2], ["split"]),
    "split with sizes": (lambda x: torch.split(x, [1, 2], 1)[1], ["split"]),
    "tensor split": (lambda x: torch.tensor_split(x, [1], dim=1)[1], ["split"]),
    "linear function": (lambda x: F.linear(x, torch.ones(2, 8)), ["matmul"]),
    "slice": (lambda x: x[:, 1:], ["slice"]),
    "slice over two axes": (lambda x: x[:, :2, ::2], ["slice", "slice"]),
    "narrow": (lambda x: x.narrow(1, 0, 2), ["slice"]),
    "index": (lambda x: x[:, 0], ["gather"]),
    "index list": (lambda x: x[:, [2, 0]], ["gather"]),
    "flip": (lambda x: x.flip(1), ["gather"]),
    "roll": (lambda x: x.roll(1, 1), ["gather"]),
    "stack": (lambda x: torch.stack([x, x], 1), ["reshape", "reshape", "concat"]),
    "unbind": (lambda x: x.unbind(1)[1], ["gather"]),
    "flatten": (lambda x: x.flatten(1), ["reshape"]),
    "unflatten": (lambda x: x.unflatten(1, (1, 3)), ["reshape"]),
    "unsqueeze": (lambda x: x.unsqueeze(1), ["reshape"]),
    "permute": (lambda x: x.permute(0, 2, 3, 1), ["transpose"]),
    "mT": (lambda x: x.mT, ["transpose"]),
    "movedim": (lambda x: x.movedim(1, -1), ["transpose"]),
    "expand": (lambda x: x[:, :1].expand(-1, 4, -1, -1), ["slice", "expand"]),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), ["tile"]),
    "global mean": (lambda x: x.mean((2, 3)), ["reduce"]),
    "maximum": (lambda x: torch.max(x, x * 2), ["mul", "maximum"]),
    "max over an axis": (lambda x: x.max(1)[0], ["reduce"]),
    "clamp": (lambda x: x.clamp(min=0), ["clip"]),
    "where": (lambda x: torch.where(x > 0, x, x * 0.1), ["greater", "mul", "where"]),
    "reversed subtraction": (lambda x: 1 - x, ["rsub"]),
    "power": (lambda x: x**2, ["pow"]),
    "floor division": (lambda x: x // 2, ["floor_div"]),
    "softmax": (lambda x: x.softmax(1), ["along"]),
    "matmul": (lambda x: x[0, 0] @ x[0, 1], ["gather", "gather", "gather", "gather", "matmul"]),
    "cast": (lambda x: x.half().float(), ["cast", "cast"]),
    "no-ops": (lambda x: F.dropout(x.contiguous(), training=False) + 0, ["add"]),
    "pad": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), ["pad"]),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), ["pad"]),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), ["resize"]),
    "ones": (lambda x: x + x.new_ones(2, 3, 1, 1), ["full", "add"]),
    "glu": (lambda x: F.glu(x, 2), ["split", "sigmoid", "mul"]),
    "addcmul": (lambda x: torch.addcmul(x, x, x), ["mul", "add"]),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), ["space_to_depth"]),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 3), ["gather"]),
    "unfold": (lambda x: F.unfold(x, 2), ["im2col"]),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_call_becomes_canonical_ops(name: str) -> None:
    function, expected = SPELLINGS[name]
    assert [op for op in ops_of(Function(function)) if op != "identity"] == expected


MODULES: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "Conv1d": (nn.Conv1d(3, 4, 3), (2, 3, 8), ["conv"]),
    "Conv2d": (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 8, 8), ["conv"]),
    "Conv3d": (nn.Conv3d(3, 4, 3), (2, 3, 4, 4, 4), ["conv"]),
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 4, 2), (2, 3, 8, 8), ["conv_transpose"]),
    "reflecting Conv2d": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 8, 8), ["pad", "conv"]),
    "Linear": (nn.Linear(8, 4), (2, 8), ["matmul"]),
    "Linear on tokens": (nn.Linear(8, 4), (2, 5, 3, 8), ["matmul"]),
    "BatchNorm1d": (nn.BatchNorm1d(8), (2, 8), ["batch_norm"]),
    "InstanceNorm2d": (nn.InstanceNorm2d(3, affine=True), (2, 3, 8, 8), ["instance_norm"]),
    "InstanceNorm2d with statistics": (nn.InstanceNorm2d(3, track_running_stats=True), (2, 3, 8, 8), ["batch_norm"]),
    "GroupNorm": (nn.GroupNorm(3, 3), (2, 3, 8, 8), ["group_norm"]),
    "LayerNorm": (nn.LayerNorm(8), (2, 3, 8, 8), ["layer_norm"]),
    "PReLU": (nn.PReLU(3), (2, 3, 8, 8), ["reshape", "prelu"]),
    "PReLU of one slope": (nn.PReLU(), (2, 3, 8, 8), ["reshape", "prelu"]),
    "Hardtanh": (nn.ReLU6(), (2, 3, 8, 8), ["clip"]),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d(2), (2, 3, 8, 8), ["avg_pool"]),
    "AdaptiveMaxPool1d": (nn.AdaptiveMaxPool1d(1), (2, 3, 8), ["reshape", "max_pool", "reshape"]),
    "MaxPool1d": (nn.MaxPool1d(2), (2, 3, 8), ["reshape", "max_pool", "reshape"]),
    "MaxPool2d": (nn.MaxPool2d(2), (2, 3, 8, 8), ["max_pool"]),
    "MaxPool3d": (nn.MaxPool3d(2), (2, 3, 4, 4, 4), ["max_pool"]),
    "AvgPool2d": (nn.AvgPool2d(3, 2, 1), (2, 3, 8, 8), ["avg_pool"]),
    "Upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 8, 8), ["resize"]),
    "PixelShuffle": (nn.PixelShuffle(2), (2, 4, 8, 8), ["depth_to_space"]),
    "Flatten": (nn.Flatten(), (2, 3, 8, 8), ["reshape"]),
    "ZeroPad2d": (nn.ZeroPad2d(1), (2, 3, 8, 8), ["pad"]),
    "LSTM": (nn.LSTM(8, 4), (2, 3, 8), ["matmul", "opaque", "matmul", "opaque"]),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_becomes_canonical_ops(name: str) -> None:
    module, shape, expected = MODULES[name]
    model = nn.Sequential(module) if name != "LSTM" else Function(lambda x: x)
    if name == "LSTM":
        model = _First(module)
    assert ops_of(model, *shape) == expected


class _First(nn.Module):
    """Return the first of a layer's results."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


def test_convolution_attributes_are_canonical() -> None:
    conv = nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    (node,) = trace(nn.Sequential(conv), (image(2, 4, 16, 16),)).graph.nodes
    assert dict(node.attrs) == {"strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [1, 2], "conv_groups": 2}
    assert node.inputs == ("input_1", "0.weight", "0.bias")
    assert (node.source, node.origin) == ("aten.convolution", "_0")


def test_a_linear_layer_is_one_node_whatever_the_strides_of_its_input() -> None:
    net = nn.Sequential(nn.Flatten(2), _Transposed(), nn.Linear(3, 5))
    *_, node = trace(net, (image(),)).graph.nodes
    assert (node.op, node.inputs[1:]) == ("matmul", ("2.weight", "2.bias"))


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_the_weight_norm_of_pytorch_is_followed_to_its_parameters() -> None:
    for wrap in (nn.utils.parametrizations.weight_norm, _old_weight_norm):
        net = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1))
        graph = trace(net, (image(),)).graph
        assert "opaque" not in [node.op for node in graph.nodes]
        assert next(node for node in graph.nodes if node.op == "conv").inputs[1] in graph.fixed_values()


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(module)


def test_the_indices_of_a_max_pool_are_an_output_of_their_own() -> None:
    def pooled(x: Tensor) -> Tensor:
        values, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(values, indices, 2)

    graph = trace(Function(pooled), (image(),)).graph
    assert [node.op for node in graph.nodes] == ["max_pool", "max_unpool"]
    assert graph.nodes[1].inputs == graph.nodes[0].outputs


# --- what is shared, written in place or not looked into -------------------------------------------------


def test_a_module_that_runs_twice_is_one_parameter() -> None:
    graph = trace(make("shared_module"), NETWORKS["shared_module"].inputs()).graph
    weights = [node.inputs[1] for node in graph.nodes if node.op == "conv"]
    assert weights == ["stem.0.weight", "shared.0.weight", "shared.0.weight"]


def test_tied_weights_have_one_name() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    graph = trace(net, (image(2, 4),)).graph
    assert [name for name in graph.params if name.endswith("weight")] == ["0.weight"]


def test_a_tensor_made_in_the_forward_is_a_parameter_of_its_own() -> None:
    scale = torch.arange(3.0).reshape(3, 1, 1)
    graph = trace(Function(lambda x: x * scale), (image(),)).graph
    (node,) = graph.nodes
    np.testing.assert_array_equal(graph.params[node.inputs[1]].array, scale.numpy())


def test_numbers_in_the_code_are_literals() -> None:
    graph = trace(Function(lambda x: x * 0.5), (image(),)).graph
    assert [(p.literal, float(p.array)) for p in graph.params.values()] == [(True, 0.5)]


def test_a_write_into_a_view_makes_its_base_opaque() -> None:
    def half(x: Tensor) -> Tensor:
        y = torch.relu(x)
        y[:, :2].zero_()
        return y * 2

    graph = trace(fx.symbolic_trace(Function(half)), (image(),)).graph
    written = next(n for n in graph.nodes if n.attrs.get("reason") == "is written in place through a view")
    assert written.inputs[0] == next(node for node in graph.nodes if node.op == "relu").outputs[0]
    assert graph.consumers(written.outputs[0])[0].op == "mul"


@pytest.mark.parametrize("spelling", ["assigned", "zeroed", "alias"])
def test_writes_that_another_view_shows_are_taken_out_by_export(spelling: str) -> None:
    def written(x: Tensor) -> Tensor:
        y = x + 1
        view = y.view(2, 3, -1)
        if spelling == "assigned":
            y[:, :2] = 0.5
        elif spelling == "zeroed":
            y[:, :2].zero_()
        else:
            y.relu_()
        return view * 2 + y.view(2, 3, -1)

    traced = trace(Function(written), (torch.zeros(2, 3, 8, 8),))
    x = torch.randn(2, 3, 8, 8)
    assert traced.exported
    assert not any("in place" in node.attrs.get("reason", "") for node in traced.graph.nodes)
    assert torch.equal(traced.module(x.clone()), written(x.clone()))


def test_a_view_taken_before_an_in_place_op_sees_its_result() -> None:
    def alias(x: Tensor) -> Tensor:
        y = x + 1
        view = y.view(2, -1)
        y.relu_()
        return view * 2

    graph = trace(fx.symbolic_trace(Function(alias)), (image(),)).graph
    last = graph.nodes[-1]
    maker = graph.producer(last.inputs[0])
    assert maker is not None
    assert maker.op == "opaque", "what the view held before the write must not be read"


def test_a_layer_that_is_not_looked_into_is_named() -> None:
    graph = trace(make("opaque_leaf"), NETWORKS["opaque_leaf"].inputs()).graph
    (leaf,) = (node for node in graph.nodes if node.op == "opaque")
    assert leaf.attrs["reason"] == "prunec does not look into MultiheadAttention modules"
    assert leaf.source == "MultiheadAttention"
    assert "attention.in_proj_weight" in leaf.inputs


def test_an_op_without_a_row_keeps_its_own_name() -> None:
    (node,) = trace(Function(lambda x: x.triu()), (image(),)).graph.nodes
    assert (node.op, node.source) == ("opaque", "aten.triu")


def test_what_no_output_depends_on_is_left_out() -> None:
    def wasteful(x: Tensor) -> Tensor:
        x.exp()
        return x + 1

    traced = trace(Function(wasteful), (image(),))
    assert [node.op for node in traced.graph.nodes] == ["add"]
    assert traced.unused == {"exp"}


def test_bfloat16_parameters_are_read() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1)).to(torch.bfloat16)
    graph = trace(net, (image().to(torch.bfloat16),)).graph
    np.testing.assert_array_equal(graph.params["0.weight"].array, net[0].weight.detach().float().numpy())


# --- messages -----------------------------------------------------------------------------------------


def test_an_input_that_does_not_fit_is_named_with_its_shape() -> None:
    with pytest.raises(BadInput) as error:
        trace(make("resnet20"), (image(2, 4, 16, 16),))
    text = str(error.value)
    assert text.startswith("error[bad-input]: the network cannot run on an input of shape 2x4x16x16")
    assert "expected input[2, 4, 16, 16] to have 3 channels" in text
    assert "do:  give the shape that it expects with --input-shape" in text


class Untraceable(nn.Module):
    """Control flow on values: nothing can trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * 2 if float(y.sum()) > 0 else y


def test_a_network_that_nothing_can_trace_names_both_tracers_and_a_way_out() -> None:
    with pytest.raises(UntraceableModel) as error:
        trace(Function(lambda x: torch.from_numpy(x.numpy() * 2)), (image(),))
    text = str(error.value)
    assert text.startswith("error[untraceable-model]: the network can be read neither by torch.fx nor by torch.export")
    assert "torch.fx: " in text
    assert "torch.export: " in text
    assert "torch.fx.wrap" in text


def test_a_network_that_decides_by_values_is_told_so_first() -> None:
    with pytest.raises(
        UntraceableModel, match=r"^error\[untraceable-model\]: the forward decides by values of tensors \(test_f"
    ):
        trace(Untraceable(), (image(),))


def test_sizes_that_depend_on_values_are_not_blamed_on_the_input() -> None:
    with pytest.raises(UntraceableModel):
        trace(Function(lambda x: x[:, x.mean((0, 2, 3)) > 0]), (image(),))


def test_export_and_fx_see_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make("export_only")

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = net.first, net.second, net.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(F.max_pool2d(shuffle(self.first(x), 2), 2)))  # type: ignore[no-any-return]

    inputs = NETWORKS["export_only"].inputs()
    plain = trace(Plain(), inputs)
    monkeypatch.setattr("prunec.frontends.fx.frontend.symbolic_trace", lambda *_: (None, None))
    exported = trace(net, inputs)
    assert (exported.exported, plain.exported) == (True, False)
    assert _shape_of(exported.graph) == _shape_of(plain.graph)


def _shape_of(graph: Graph) -> list[tuple[str, Any]]:
    names = {"identity"}  # torch.export writes some copies out
    return [(node.op, graph.values[node.outputs[0]].shape) for node in graph.nodes if node.op not in names]


def test_a_traced_module_shares_its_parameters_with_the_users() -> None:
    net = make("resnet20")
    traced: Traced = trace(net, NETWORKS["resnet20"].inputs())
    assert dict(traced.module.named_parameters())["0.0.weight"] is net[0][0].weight
