"""The FX backend: written-out sizes of every spelling follow the channels that go, or are pinned; never wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assertions import assert_same_function, outputs_of, parameter_elements
from networks import cbr, silence
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunec.api import Pruned, prune_module
from prunec.backends.fx.backend import apply_edits
from prunec.errors import BudgetNotMet
from prunec.ir.edits import CannotRewrite, Edits
from prunec.ir.graph import Graph
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import plan, select
from prunec.pipeline import planning
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import input_specs, read_module

CHANNELS = 12
SILENT = (0, 1, 2, 3, 5, 6, 9)
"""Channels with gamma 0: a row and a column of a 3x4 view, two columns of a 2x6 view, and some more."""


class Spelled(nn.Module):
    """A silenced convolution, a piece of forward, and what reads the result: a 1x1 convolution, or a linear layer."""

    def __init__(self, piece: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = cbr(3, CHANNELS)
        self.piece = piece
        found = piece(torch.zeros(2, CHANNELS, 8, 8))
        self.linear = found.dim() != 4
        self.tail = nn.Linear(found.shape[-1], 5) if self.linear else nn.Conv2d(found.shape[1], 5, 1)
        silence(self, 0.0)
        self.stem[1].weight.data[list(SILENT)] = 0.0
        self.stem[1].bias.data[:4] = -0.1  # zero after ReLU; the other silent channels are constant and not zero

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.piece(self.stem(x)))  # type: ignore[no-any-return]


def prune(net: nn.Module) -> Pruned:
    result = prune_module(net, (batch(),), validate=False)
    assert_same_function(net, result.module, batch(), batch(1))
    return result


def batch(size: int = 2) -> Tensor:
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(size))


REWRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "view with sizes": lambda x: x.view(x.size(0), CHANNELS * 64),
    "view from the end": lambda x: x.view(-1, CHANNELS * 64),
    "view with -1": lambda x: x.view(x.size(0), -1),
    "view of a shape": lambda x: x.reshape(x.shape),
    "reshape with a tuple": lambda x: x.reshape((-1, CHANNELS * 64)),
    "reshape with a list": lambda x: torch.reshape(x, [x.shape[0], CHANNELS, 64]).mean(2),
    "reshape by keyword": lambda x: torch.reshape(input=x, shape=(-1, CHANNELS * 64)),
    "flatten": lambda x: torch.flatten(x, 1),
    "channels counted by the forward": lambda x: x.view(x.size(0), x.size(1), -1).mean(-1),
    "sizes by shape": lambda x: x.view(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).sum(2),
    "split axis": lambda x: x.view(-1, 3, 4, 8, 8).mean(1),
    "split attention": lambda x: (x.view(-1, 3, 4, 8, 8).softmax(1) * x.view(-1, 3, 4, 8, 8)).sum(1),
    "standardised per branch": lambda x: x.view(-1, 3, 4, 64).std(3).amax(1),
    "unflatten": lambda x: x.unflatten(1, (3, 4)).mean(2),
    "unflatten by keyword": lambda x: torch.unflatten(x, dim=1, sizes=(3, 4)).mean(1),
    "channel shuffle": lambda x: x.view(-1, 3, 4, 8, 8).transpose(1, 2).reshape(-1, CHANNELS, 8, 8),
    "channel shuffle by permute": lambda x: x.reshape(x.size(0), 2, 6, 8, 8).permute(0, 2, 1, 3, 4).flatten(1, 2),
    "channel shuffle op": lambda x: F.channel_shuffle(x, 3),
    "chunk method": lambda x: x.chunk(3, 1)[1],
    "chunk function": lambda x: torch.chunk(x, 2, dim=1)[0],
    "chunk by keyword": lambda x: torch.chunk(input=x, chunks=2, dim=1)[1],
    "uneven chunk": lambda x: x.chunk(5, 1)[3],
    "unpacked chunk": lambda x: (lambda a, b: a * 2 + b)(*x.chunk(2, 1)),
    "split method": lambda x: x.split(5, 1)[1],
    "split function": lambda x: torch.split(x, 4, dim=1)[2],
    "split with sizes": lambda x: torch.cat(torch.split(x, [2, 7, 3], dim=1)[1:], 1),
    "split by keyword": lambda x: torch.split(tensor=x, split_size_or_sections=[6, 6], dim=1)[0],
    "tensor split": lambda x: x.tensor_split([3, 9], dim=1)[1],
    "slice": lambda x: x[:, 2:9],
    "slice to the end": lambda x: x[:, 5:],
    "slice from the end": lambda x: x[:, -4:],
    "slice with ellipsis": lambda x: x[..., 3:, :, :],
    "slice with a new axis": lambda x: x[:, None, 2:8][:, 0],
    "slice over space too": lambda x: x[:, 1:7, ::2, 1:],
    "slice under an ellipsis": lambda x: x[:, 2:7, ..., 1:],
    "narrow": lambda x: x.narrow(1, 2, 6),
    "narrow function": lambda x: torch.narrow(x, 1, 0, 7),
    "index list": lambda x: x[:, [3, 1, 8, 8]],
    "index select": lambda x: torch.index_select(x, 1, torch.tensor([7, 2, 0, 11])),
    "index select method": lambda x: x.index_select(1, torch.arange(3, 9)),
    "flip": lambda x: x.flip(1),
    "flip over space": lambda x: torch.flip(x, dims=(1, 3)),
    "roll": lambda x: torch.roll(x, 3, 1),
    "stack": lambda x: torch.stack([x, x * 2], 1).flatten(1, 2),
    "stack behind": lambda x: torch.stack([x, -x], 2).mean(2),
    "concat of lists": lambda x: torch.cat([x, x.abs()], 1),
    "concat with constants": lambda x: torch.cat([x, x.new_ones(x.size(0), 4, 8, 8)], 1),
    "concat with zeros": lambda x: torch.cat([torch.zeros(x.size(0), 2, 8, 8), x], 1),
    "channels padded": lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)),
    "channels padded with a value": lambda x: F.pad(x, [0, 0, 0, 0, 1, 1], value=0.5),
    "space and channels padded": lambda x: F.pad(x, (1, 0, 0, 1, 2, 0)),
    "channels cropped": lambda x: F.pad(x, (0, 0, 0, 0, -2, -1)),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "tile": lambda x: torch.tile(x, (1, 2, 1, 1)),
    "repeat interleave": lambda x: x.repeat_interleave(2, dim=1),
    "expand": lambda x: x.new_full((1, 1, 1, 1), 0.5).expand(-1, CHANNELS, -1, -1) + x,
    "expand as": lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 2, stride=2).mean(2),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "positions as tokens": lambda x: x.flatten(2).transpose(1, 2),
    "squeeze": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "global max": lambda x: x.amax((2, 3)),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1) * 2,
    "scaled by the number of channels": lambda x: x / x.size(1) ** 0.5,
    "scaled by shape": lambda x: x * (1.0 / x.shape[1]),
    "gated": lambda x: x * torch.sigmoid(x),
    "glu": lambda x: F.glu(x, dim=1),
    "minimum": lambda x: torch.minimum(x, x.new_full((1, CHANNELS, 1, 1), 0.3)),
    "where": lambda x: torch.where(x > 0.1, x, torch.zeros_like(x)),
    "masked": lambda x: x.masked_fill(x < 0.2, 0.7),
    "in place": lambda x: x.add_(1.0).mul_(2.0).clamp_(max=3.0),
    "in place on a copy": lambda x: x.clone().relu_() + x,
    "average pool that counts padding": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "every second channel": lambda x: torch.cat((x[:, 1::2], x[:, ::3]), dim=1),
    "every second channel and pixel": lambda x: x[..., ::2, ::2, 1::2],
    "channels in reverse": lambda x: torch.cat((x.flip(1), torch.flip(x, (1, 3))), dim=1),
    "einsum over space": lambda x: torch.einsum("nchw->nc", x),
}
"""Pieces through which channels must go away."""


@pytest.mark.parametrize("name", REWRITTEN)
def test_sizes_follow_the_channels_that_go(name: str) -> None:
    result = prune(Spelled(REWRITTEN[name]))
    assert result.report.removed_channels > 0, result.report.message


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "one channel": (lambda x: x[:, 3:4] * x[:, 5].unsqueeze(1) + x, "is picked out by its index"),
    "reduced over channels": (lambda x: x.amax(1, keepdim=True) + x, "max runs over its channels"),
    "softmax over channels": (lambda x: x.softmax(1), "softmax mixes its channels"),
    "normalised over channels": (lambda x: F.normalize(x, p=3.0), "norm runs over its channels"),
    "argmax over channels": (lambda x: x + x.argmax(1, keepdim=True), "argmax runs over its channels"),
    "layer norm": (lambda x: F.layer_norm(x, (CHANNELS, 8, 8)), "LayerNorm averages over its channels"),
    "group norm": (lambda x: F.group_norm(x, 1), "GroupNorm averages over the channels of a group"),
    "merged with the batch": (lambda x: x.reshape(-1, 1, 8, 8).expand(-1, 4, -1, -1), "is merged with the batch"),
    "an op without a rule": (lambda x: x.triu() + x, "prunec has no rule for aten.triu"),
    "local response": (lambda x: F.local_response_norm(x, 3), "a spatial position is not a channel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_follow_is_pinned_with_a_reason(name: str) -> None:
    piece, reason = REFUSED[name]
    result = prune(Spelled(piece))
    assert any(reason in pin.reason and pin.channels for pin in result.report.pins), result.report.pins


# --- contractions written as functions ---------------------------------------------------------------------


class Functional(nn.Module):
    """Convolutions and linear layers called with parameters."""

    def __init__(self, call: Callable[[Tensor, nn.Parameter], Tensor], *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = cbr(3, CHANNELS)
        self.weight = nn.Parameter(torch.randn(shape) / 4)
        self.call = call
        found = call(torch.zeros(2, CHANNELS, 8, 8), self.weight)
        self.linear = found.dim() == 2
        self.tail = nn.Linear(found.shape[1], 4) if self.linear else nn.Conv2d(found.shape[1], 4, 1)
        silence(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.call(self.stem(x), self.weight))  # type: ignore[no-any-return]


FUNCTIONS: dict[str, tuple[Callable[[Tensor, nn.Parameter], Tensor], tuple[int, ...]]] = {
    "conv": (lambda x, w: F.conv2d(x, w, padding=1), (6, CHANNELS, 3, 3)),
    "conv without padding": (lambda x, w: F.conv2d(x, w), (6, CHANNELS, 3, 3)),
    "depthwise": (lambda x, w: F.conv2d(x, w, None, 1, 1, 1, CHANNELS), (CHANNELS, 1, 3, 3)),
    "depthwise by keyword": (lambda x, w: F.conv2d(x, w, padding=1, groups=CHANNELS), (2 * CHANNELS, 1, 3, 3)),
    "grouped": (lambda x, w: torch.conv2d(x, w, groups=3), (9, 4, 1, 1)),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (CHANNELS, 6, 2, 2)),
    "linear": (lambda x, w: F.linear(x.mean((2, 3)), w), (6, CHANNELS)),
    "matmul": (lambda x, w: x.mean((2, 3)) @ w, (CHANNELS, 6)),
    "weight standardisation": (lambda x, w: F.conv2d(x, w / w.std((2, 3), keepdim=True)), (6, CHANNELS, 3, 3)),
    "prelu": (lambda x, w: F.prelu(x, w), (CHANNELS,)),
    "layer scale": (lambda x, w: x + w[:, None, None] * x, (CHANNELS,)),
    "matmul from the left": (lambda x, w: (w.t() @ x.flatten(2)).unsqueeze(3), (CHANNELS, 6)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_with_parameters_are_pruned(name: str) -> None:
    call, shape = FUNCTIONS[name]
    net = Functional(call, *shape)
    result = prune(net)
    if name != "matmul from the left":  # its bias would lie along another axis than the last
        assert result.report.removed_channels > 0
        assert parameter_elements(result.module) < parameter_elements(net)


def test_a_functional_contraction_without_a_bias_gets_one_as_a_parameter() -> None:
    result = prune(Functional(*[FUNCTIONS["linear"][0]], *FUNCTIONS["linear"][1]))
    assert any("folded_bias" in name for name, _ in result.module.named_parameters())


def test_a_layer_without_a_bias_gets_one_where_no_norm_follows() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 1, bias=False)))
    result = prune(net)
    assert result.report.removed_channels > 0
    assert result.module.get_submodule("1").bias is not None
    assert net[1].bias is None


def test_the_papers_form_takes_from_the_running_mean_where_a_norm_follows() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), cbr(8, 6, 1), nn.Conv2d(6, 2, 1)))
    result = prune(net)
    assert {fold.kind for fold in result.plan.folds if fold.node == "_1_0"} == {"running_mean"}
    assert result.module.get_submodule("1.0").bias is None


# --- how the result is built ---------------------------------------------------------------------------------


def test_constants_and_indices_are_buffers_of_the_result() -> None:
    net = Spelled(REWRITTEN["index list"])
    result = prune(net)
    buffers = dict(result.module.named_buffers())
    (indices,) = (b for name, b in buffers.items() if name.endswith("_indices"))
    assert indices.dtype == torch.int64
    assert any(name.endswith("_indices") for name in result.module.state_dict())


def test_unused_layers_and_parameters_are_gone_from_the_result() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = cbr(3, 8), cbr(3, 8)
            self.extra = nn.Parameter(torch.ones(3))
            self.tail = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.used(x))  # type: ignore[no-any-return]

    result = prune(silence(Wasteful()))
    assert not [name for name in result.module.state_dict() if name.startswith(("unused", "extra"))]


def test_the_result_lints_and_its_code_is_python() -> None:
    result = prune(Spelled(REWRITTEN["channel shuffle"]))
    assert isinstance(result.module, fx.GraphModule)
    result.module.graph.lint()
    compile(result.module.code, "<pruned>", "exec")


@fx.wrap
def halves(x: Tensor) -> Tensor:
    """A function that torch.fx does not enter: its sizes cannot be rewritten."""
    return x.view(x.shape[0], 2, 6, 8, 8).sum(1)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.tail = cbr(3, CHANNELS), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(halves(self.stem(x)))  # type: ignore[no-any-return]


def test_a_size_that_cannot_be_rewritten_is_found_and_pinned_not_shipped() -> None:
    net = silence(Wrapped(), 1.0)
    net.stem[1].weight.data[4] = net.stem[1].weight.data[10] = 1.0
    result = prune(net)
    assert result.report.removed_channels == 0
    pin = next(pin for pin in result.report.pins if pin.node == "halves")
    assert "fewer channels" in pin.reason or "sizes" in pin.reason


def test_a_wrong_plan_is_stopped_by_the_check_run() -> None:
    """A reshape whose sizes were not rewritten gives shapes that were not planned."""
    net = Spelled(REWRITTEN["split axis"])
    traced = read_module(net, (batch(),))
    facts = gather_facts(traced.graph)
    selection = select(facts)
    made = plan(facts, selection, input_specs(traced.graph, (batch(),)))
    edits = lower(traced.graph, facts.classes, made, facts.constants)
    reshapes = [name for name in edits.attrs if "shape" in edits.attrs[name]]
    broken = type(edits)(**{**_fields(edits), "attrs": {k: v for k, v in edits.attrs.items() if k not in reshapes}})
    assert reshapes
    with pytest.raises(CannotRewrite) as error:
        apply_edits(traced, broken)
    assert error.value.origin == "view"


def _fields(edits: Any) -> dict[str, Any]:
    return {name: getattr(edits, name) for name in type(edits).__dataclass_fields__}


def test_no_edits_give_the_same_network() -> None:
    net = Spelled(REWRITTEN["gated"])
    net.stem[1].weight.data.fill_(1.0)
    result = prune(net)
    assert result.plan.is_empty
    for a, b in zip(outputs_of(net, batch()), outputs_of(result.module, batch()), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_graph_module_can_be_pruned_itself() -> None:
    net = Spelled(REWRITTEN["gated"])
    traced = fx.symbolic_trace(net)
    result = prune_module(traced, (batch(),))
    assert result.report.removed_channels > 0
    assert_same_function(net, result.module, batch())


class Watchful(nn.Module):
    """Asserts sizes in every block, as timm's EvoNorm does; the last norm of each block starts at zero."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.inner = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(blocks)])
        self.outer = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(blocks)])
        self.gains = nn.ParameterList([nn.Parameter(torch.zeros(8)) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer, gain in zip(self.inner, self.outer, self.gains, strict=True):
            y = outer(torch.relu(inner(x)))
            torch._assert(y.dim() == 4, "expected a batch of images")
            torch._assert(y.shape[1] % 2 == 0, "")
            x = x + y * gain.view(-1, 1, 1)
        return self.head(x)  # type: ignore[no-any-return]


def test_checks_of_a_branch_that_vanishes_vanish_with_it() -> None:
    net = Watchful(3)
    result = prune_module(net, (torch.randn(1, 3, 8, 8),))
    left = {name.split(".")[0] for name, _ in result.module.named_parameters()}
    assert left == {"stem", "head"}


class Stubborn(nn.Module):
    """Many calls of a kind whose sizes cannot follow, and a check that fails without a word."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.body = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.body:
            x = _eight(torch.relu(conv(x)))
        return self.head(x)  # type: ignore[no-any-return]


@fx.wrap
def _eight(x: Tensor) -> Tensor:
    assert x.shape[1] == 8
    return x * 2


def test_a_deep_network_of_unrewritable_calls_is_planned_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = 0
    make = planning._planned

    def counted(*args: Any) -> Any:
        nonlocal plans
        plans += 1
        return make(*args)

    monkeypatch.setattr(planning, "_planned", counted)
    net, x = Stubborn(60), torch.randn(1, 3, 8, 8)
    with pytest.raises(BudgetNotMet):
        prune_module(net, (x,), criterion="l1", target_macs=0.1, validate=False)
    assert plans <= planning.SAME_KIND + 3


def test_what_still_fails_when_it_is_pinned_stops_the_pruning_and_is_named() -> None:
    def apply(graph: Graph, edits: Edits) -> str:
        if edits.params:
            raise CannotRewrite("_0_2", "it never works")
        return "unchanged"

    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), cbr(8, 8), nn.Conv2d(8, 2, 1)))
    traced = read_module(net, (torch.randn(1, 3, 8, 8),))
    job = planning.plan_and_apply(traced.graph, (), planning.Options(), None, apply)
    assert job.result == "unchanged"
    assert any("_0_2 cannot be changed: it never works" in pin.reason for pin in job.facts.classes.pins)


def test_a_pruned_module_is_saved_whole_although_its_annotations_are_text(tmp_path: Path) -> None:
    """Annotations are text where a file says ``from __future__ import annotations``, as this one does."""
    net = Spelled(lambda x: x * 2)
    result = prune(net)
    torch.save(result.module, tmp_path / "pruned.pt")
    loaded = torch.load(tmp_path / "pruned.pt", weights_only=False)
    assert_same_function(result.module, loaded, torch.randn(2, 3, 8, 8), tolerance=0.0)


class Checked(nn.Module):
    """A branch that vanishes, and whose layers check what they read, with the rank in the message, as timm's do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x)
        torch._assert(y.ndim == 4, f"expected 4D input (got {y.ndim}D input)")
        return self.head(self.norm(y) + x)  # type: ignore[no-any-return]  # nn.Module's call is untyped


def test_what_only_the_text_of_an_assertion_reads_goes() -> None:
    torch.manual_seed(0)
    net = Checked().double().eval()
    nn.init.zeros_(net.norm.weight)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    result = prune_module(net, (x,), validate=False)
    assert_same_function(net, result.module, x, tolerance=1e-12)
    assert not any(n.op == "call_module" and n.target == "b" for n in result.module.graph.nodes)
