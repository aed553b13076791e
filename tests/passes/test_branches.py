"""Branches: what a sum can do without, what goes with it, and that the rest computes what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunec.backends.fx.backend import apply_edits
from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import write_onnx
from prunec.frontends.fx.frontend import trace
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx
from prunec.passes.fitting.branches import Branch, branches, cheapest_first, prefixes
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import plan, select
from prunec.pipeline.export import export_onnx
from prunec.pipeline.planning import gather_facts
from prunec.runtime import sessions
from tests.modules.blocks import Basic, ConvNeXtBlock, Head, InvertedResidual, OptionA, RepBlock, ResNeXtBlock, cbr


class UNet(nn.Module):
    """The decoder's map is added to the encoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep, self.last = cbr(3, 8), nn.Sequential(cbr(8, 16, stride=2), cbr(16, 16)), cbr(8, 4)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.last(first + self.up(self.deep(first)))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Blocks of a vision transformer: attention and two linear layers, both bypassed."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.heads = nn.Conv2d(3, 16, 4, 4), 2
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for at in range(2):
            b, n, c = x.shape
            qkv = self.qkv[at](self.norms[2 * at](x)).reshape(b, n, 3, self.heads, c // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.out[at](y.transpose(1, 2).reshape(b, n, c))
            x = x + self.down[at](torch.relu(self.up[at](self.norms[2 * at + 1](x))))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


NETS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: nn.Sequential(cbr(3, 8), Basic(8, 8), Basic(8, 12, 2), Basic(12, 12), Head(12)),
    "option a": lambda: nn.Sequential(cbr(3, 8), OptionA(8, 8, 1), OptionA(8, 12, 2), OptionA(12, 12, 1), Head(12)),
    "inverted": lambda: nn.Sequential(
        cbr(3, 8), InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 2), InvertedResidual(12, 12, 1, 2), Head(12)
    ),
    "rep": lambda: nn.Sequential(cbr(3, 8), RepBlock(8, 8), RepBlock(8, 12), RepBlock(12, 12), Head(12)),
    "groups": lambda: nn.Sequential(cbr(3, 8), ResNeXtBlock(8, 4), ResNeXtBlock(8, 4), Head(8)),
    "convnext": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), ConvNeXtBlock(8), ConvNeXtBlock(8), Head(8)),
    "unet": UNet,
    "tokens": Tokens,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[name]().train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, 16, 16))
    return net.eval()


def means_of(found: tuple[Branch, ...], graph: Any, seed: int = 0) -> dict[str, Any]:
    """Return some constants to put in place of branches, one per channel."""
    rng, result = np.random.default_rng(seed), {}
    for branch in found:
        shape = [1] * len(graph.shape(branch.value))
        shape[branch.axis] = graph.shape(branch.value)[branch.axis]
        result[branch.value] = rng.standard_normal(shape)
    return result


def run_with(module: Any, x: Tensor, origins: dict[str, Any]) -> Any:
    """Run a traced module with some nodes' results replaced."""

    class Replaced(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            return torch.from_numpy(origins[n.name]).float().expand_as(result) if n.name in origins else result

    with torch.no_grad():
        return Replaced(module).run(x)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NETS)
def test_what_is_left_computes_what_the_original_does_with_the_branches_replaced(name: str, seed: int) -> None:
    net, x = made(name), torch.randn(2, 3, 16, 16)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    traced = trace(net, (x,))
    facts = gather_facts(traced.graph)
    found = branches(facts.graph, facts.classes, facts.constants)
    assert found
    rng = np.random.default_rng(seed)
    chosen = tuple(branch for branch in found if rng.random() < 0.6) or found[-1:]
    means = means_of(chosen, traced.graph, seed)
    facts = gather_facts(traced.graph, replaced=means)
    selection = select(facts)
    pruned = apply_edits(traced, lower(facts.graph, facts.classes, plan(facts, selection, ()), facts.constants))
    ran = {node.name for node in facts.graph.nodes} - selection.wanted.nodes
    assert all(branch.nodes <= ran for branch in chosen)
    nodes = {key: ref.name for key, ref in traced.results.items() if hasattr(ref, "name")}
    wanted = run_with(traced.module, x, {key: means[value] for key, value in nodes.items() if value in means})
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NETS)
def test_a_file_without_branches_computes_what_the_module_does(name: str, tmp_path: Path) -> None:
    net, x = made(name), torch.randn(1, 3, 16, 16)
    export_onnx(net, (x,), tmp_path / "net.onnx")
    traced = trace_onnx(load_onnx(tmp_path / "net.onnx"))
    facts = gather_facts(traced.graph)
    found = branches(facts.graph, facts.classes, facts.constants)
    means = means_of(found, traced.graph)
    facts = gather_facts(traced.graph, replaced=means)
    edits = lower(facts.graph, facts.classes, plan(facts, select(facts), ()), facts.constants)
    write_onnx(apply_onnx(traced, edits), tmp_path / "out.onnx")
    module = trace(net, (x,))
    own = gather_facts(module.graph)
    same = branches(own.graph, own.classes, own.constants)
    assert len(same) == len(found)
    by_module = dict(zip((branch.value for branch in same), means.values(), strict=True))
    nodes = {key: ref.name for key, ref in module.results.items() if hasattr(ref, "name")}
    wanted = run_with(module.module, x, {key: by_module[value] for key, value in nodes.items() if value in by_module})
    runner = sessions.open_runner(tmp_path / "out.onnx", "out", "cpu", optimise=True)
    (answer,) = runner.session.run(None, {runner.session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(answer, wanted.numpy(), rtol=1e-3, atol=1e-4)


def found_in(net: nn.Module, *, keep: tuple[str, ...] = (), side: int = 16) -> tuple[Branch, ...]:
    graph = trace(net.eval(), (torch.randn(1, 3, side, side),)).graph
    facts = gather_facts(graph, keep)
    return branches(facts.graph, facts.classes, facts.constants)


def test_each_block_is_a_branch_of_its_sum_and_holds_its_own_layers() -> None:
    found = found_in(NETS["basic"]())
    assert len(found) == 3
    assert [len(branch.nodes) for branch in found] == [5, 5, 5]
    assert [branch.index for branch in found] == [0, 0, 0]


def test_a_layer_that_others_read_stays() -> None:
    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.head = cbr(3, 8), nn.Conv2d(8, 8, 3, padding=1), Head(16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = self.inner(x)
            return self.head(torch.cat([x + y, y], 1))  # type: ignore[no-any-return]

    assert not found_in(Peeking())


@pytest.mark.parametrize(("keep", "left"), [("1.conv1.weight", 2), ("1.*", 2), ("4.fc.weight", 3)])
def test_what_a_person_keeps_does_not_go_with_its_branch(keep: str, left: int) -> None:
    assert len(found_in(NETS["basic"](), keep=(keep,))) == left


def test_the_cheapest_for_what_they_save_go_first_as_many_as_each_part_allows() -> None:
    found = found_in(NETS["basic"]())
    whole = {name: 1.0 for branch in found for name in branch.nodes}
    a, b, c = (branch.value for branch in found)
    ranked = cheapest_first(found, {a: 3.0, b: 1.0, c: 2.0}, whole)
    assert [branch.value for branch in ranked] == [b, c, a]
    assert [len(each) for each in prefixes(ranked, whole, 20.0, (0.2, 0.25, 0.3, 0.5, 1.0))] == [1, 2, 3]
    assert [branch.value for branch in cheapest_first(found, {a: 3.0}, whole)] == [a]
    assert not cheapest_first(found, {a: 1.0}, {})
