"""How the FX backend builds its result: never wrong, and never shipped without having been run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assertions import assert_same_function, outputs_of
from modules.blocks import cbr
from modules.networks import silence
from modules.silent import CHANNELS, REWRITTEN, Spelled, batch, prune
from torch import Tensor, fx, nn

from prunec.api import prune_module
from prunec.backends.fx.backend import apply_edits
from prunec.errors import BudgetNotMet
from prunec.ir.edits import CannotRewrite, Edits
from prunec.ir.graph import Graph
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import plan, select
from prunec.pipeline import planning
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import input_specs, read_module


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
