"""Where removed constants go: folds into biases, running means and carriers, checked against hand-computed sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from assertions import assert_same_function
from graphs.tiny import NAN, Tiny
from modules.blocks import cbr
from modules.networks import silence
from torch import nn

from prunec.api import prune_module
from prunec.errors import InternalError
from prunec.frontends.fx.frontend import trace
from prunec.ir.graph import Graph
from prunec.ir.plan import Fold, PrunePlan
from prunec.passes.lowering.lower import lower
from prunec.passes.selection import carriers
from prunec.passes.selection.carriers import _losses, absorptions, bias_target, new_biases
from prunec.passes.selection.select import Selection, plan, select
from prunec.pipeline.planning import gather_facts

RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def silent(t: Tiny, constants: list[float], kernel: int = 1) -> str:
    """Add a convolution and a BatchNorm whose channels are the given constants (NaN: it varies)."""
    n = len(constants)
    x = t.conv(t.input("N", 3, 8, 8), weight(n, 3, kernel, kernel), ("N", n, 8, 8), pad=kernel // 2)
    gamma = [1.0 if c != c else 0.0 for c in constants]
    return t.norm(x, gamma, [0.0 if c != c else c for c in constants])


def planned(graph: Graph, border: str = "exact") -> tuple[Selection, PrunePlan]:
    facts = gather_facts(graph)
    selection = select(facts, border=border)
    return selection, plan(facts, selection, ())


def kept(made: PrunePlan, param: str) -> tuple[int, ...] | None:
    return next((k.keep for k in made.keeps if k.param == param and k.axis == 0), None)


def edits_of(graph: Graph, made: PrunePlan) -> Any:
    return lower(graph, gather_facts(graph).classes, made)


# --- bias ---------------------------------------------------------------------------------------------


def test_constants_are_added_to_the_bias_of_the_next_layer() -> None:
    t = Tiny()
    w, b = weight(2, 4, 1, 1), weight(2)
    graph = t.graph(t.conv(silent(t, [NAN, 2.0, NAN, -1.0]), w, ("N", 2, 8, 8), bias=b))
    _, made = planned(graph)
    last = graph.nodes[-1]
    assert made.folds == (Fold(last.name, "bias", (1, 3), (2.0, -1.0), last.inputs[2]),)
    assert made.exact
    edits = edits_of(graph, made)
    np.testing.assert_allclose(edits.params[last.inputs[2]], b + 2 * w[:, 1, 0, 0] - w[:, 3, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(edits.params[last.inputs[1]], w[:, [0, 2]])


def test_every_tap_counts_where_nothing_is_padded() -> None:
    t = Tiny()
    w = weight(2, 2, 3, 3)
    graph = t.graph(t.conv(silent(t, [NAN, 0.5]), w, ("N", 2, 6, 6)))
    _, made = planned(graph)
    edits = edits_of(graph, made)
    np.testing.assert_allclose(edits.new_biases[graph.nodes[-1].name], 0.5 * w[:, 1].sum((1, 2)), rtol=1e-6)


def test_a_zero_constant_needs_no_fold_and_no_carrier_whatever_the_padding() -> None:
    t = Tiny()
    graph = t.graph(t.conv(silent(t, [NAN, 0.0, 0.0]), weight(2, 3, 3, 3), ("N", 2, 8, 8), pad=1))
    selection, made = planned(graph)
    assert made.folds == ()
    assert not selection.carriers.any()
    assert kept(made, graph.nodes[0].inputs[1]) == (0,)


def test_a_norm_that_follows_takes_the_sum_from_its_running_mean() -> None:
    t = Tiny()
    w = weight(2, 2, 1, 1)
    x = t.conv(silent(t, [NAN, 2.0]), w, ("N", 2, 8, 8))
    graph = t.graph(t.conv(t.norm(x, [1, 1], [0, 0], mean=[0.1, 0.2]), weight(1, 2, 1, 1), ("N", 1, 8, 8)))
    _, made = planned(graph)
    mean = graph.nodes[-2].inputs[3]
    (fold,) = made.folds
    assert (fold.kind, fold.target) == ("running_mean", mean)
    np.testing.assert_allclose(edits_of(graph, made).params[mean], np.array([0.1, 0.2]) - 2 * w[:, 1, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("why", ["batch statistics", "another reader", "an output", "another norm"])
def test_a_running_mean_that_is_not_this_layers_alone_is_left_as_it_is(why: str) -> None:
    t = Tiny()
    x = t.conv(silent(t, [NAN, 2.0]), weight(2, 2, 1, 1), ("N", 2, 8, 8))
    y = t.norm(x, [1, 1], [0, 0], training=why == "batch statistics")
    outs = [t.conv(y, weight(1, 2, 1, 1), ("N", 1, 8, 8))]
    if why == "another reader":
        outs.append(t.conv(x, weight(1, 2, 1, 1), ("N", 1, 8, 8)))
    if why == "an output":
        outs.append(x)
    if why == "another norm":
        norm = next(node for node in t.graph(y).nodes if y in node.outputs)
        z = t.node("batch_norm", [t.input("N", 2, 8, 8), *norm.inputs[1:]], ("N", 2, 8, 8), **norm.attrs)
        outs.append(z)
    _, made = planned(t.graph(*outs))
    (fold,) = (f for f in made.folds if f.positions == (1,))
    assert (fold.kind, fold.target) == ("bias", "")


def test_a_linear_layer_absorbs_every_pixel_of_a_flattened_channel() -> None:
    t = Tiny()
    x = t.node("reshape", [silent(t, [NAN, 3.0])], ("N", 128), shape=["N", 128])
    w = weight(5, 128)
    graph = t.graph(t.node("matmul", [x, t.param(w, "fc"), t.param(np.zeros(5), "b")], ("N", 5), transpose_b=True))
    _, made = planned(graph)
    (fold,) = made.folds
    assert (fold.kind, fold.target, fold.positions) == ("bias", "b", tuple(range(64, 128)))
    np.testing.assert_allclose(edits_of(graph, made).params["b"], 3 * w[:, 64:].sum(1), rtol=1e-5)


# --- carriers -----------------------------------------------------------------------------------------


def test_a_padded_border_keeps_the_largest_constant_as_the_carrier() -> None:
    t = Tiny()
    w = weight(2, 4, 3, 3)
    graph = t.graph(t.conv(silent(t, [NAN, 0.5, -2.0, 1.0]), w, ("N", 2, 8, 8), pad=1))
    selection, made = planned(graph)
    assert selection.carriers.sum() == 1
    assert kept(made, graph.nodes[0].inputs[1]) == (0, 2)
    assert made.folds == (Fold(graph.nodes[-1].name, "carrier", (1, 3), (0.5, 1.0), "", 2, -2.0),)
    folded = edits_of(graph, made).params[graph.nodes[-1].inputs[1]]
    np.testing.assert_allclose(folded[:, 1], w[:, 2] - 0.25 * w[:, 1] - 0.5 * w[:, 3], rtol=1e-5)
    np.testing.assert_array_equal(folded[:, 0], w[:, 0])


def test_a_lone_constant_is_its_own_carrier_and_stays() -> None:
    t = Tiny()
    graph = t.graph(t.conv(silent(t, [NAN, 0.5]), weight(2, 2, 3, 3), ("N", 2, 8, 8), pad=1))
    _, made = planned(graph)
    assert made.is_empty


def test_bias_borders_take_the_papers_form_and_are_not_exact() -> None:
    t = Tiny()
    graph = t.graph(t.conv(silent(t, [NAN, 0.5, -2.0]), weight(2, 3, 3, 3), ("N", 2, 8, 8), pad=1))
    selection, made = planned(graph, "bias")
    assert not selection.carriers.any()
    assert [fold.kind for fold in made.folds] == ["bias"]
    assert not made.exact
    assert kept(made, graph.nodes[0].inputs[1]) == (0,)


def test_readers_of_one_map_share_a_carrier() -> None:
    t = Tiny()
    x = silent(t, [NAN, 0.5, -2.0, 1.0])
    outs = [t.conv(x, weight(2, 4, 3, 3), ("N", 2, 8, 8), pad=1) for _ in range(3)]
    selection, made = planned(t.graph(*outs))
    assert selection.carriers.sum() == 1
    assert [fold.carrier for fold in made.folds] == [2, 2, 2]


def test_a_dense_concat_chooses_the_fewest_carriers_that_serve_all_readers() -> None:
    t = Tiny()
    a, b = silent(t, [NAN, 1.0, 2.0]), silent(t, [NAN, 0.5, 0.7])
    joined = t.node("concat", [a, b], ("N", 6, 8, 8), axis=1)
    outs = [
        t.conv(joined, weight(2, 6, 3, 3), ("N", 2, 8, 8), pad=1),
        t.conv(b, weight(2, 3, 3, 3), ("N", 2, 8, 8), pad=1),
    ]
    selection, made = planned(t.graph(*outs))
    assert selection.carriers.sum() == 1, "a constant of b serves both readers"
    assert [(fold.kind, fold.carrier) for fold in made.folds] == [("carrier", 5), ("carrier", 2)]


def test_a_constant_that_stays_anyway_is_the_carrier_for_nothing() -> None:
    """Channel 1 is pinned as an output: it carries, and no further channel is given back."""
    t = Tiny()
    x = silent(t, [NAN, 1.0, 2.0])
    out = t.conv(x, weight(2, 3, 3, 3), ("N", 2, 8, 8), pad=1)
    pinned = t.node("gather", [x], ("N", 8, 8), axis=1, indices=np.int64(1))
    selection, made = planned(t.graph(out, pinned))
    assert not selection.carriers.any()
    assert [(fold.positions, fold.carrier) for fold in made.folds] == [((2,), 1)]


def test_a_constant_too_small_to_carry_is_passed_over() -> None:
    t = Tiny()
    x = silent(t, [NAN, 1e-6, 2.0, 1.0])
    selection, made = planned(t.graph(t.conv(x, weight(2, 4, 3, 3), ("N", 2, 8, 8), pad=1)))
    (fold,) = made.folds
    assert fold.carrier == 2
    assert selection.carriers.sum() == 1


def test_a_constant_that_stays_and_is_too_small_carries_nothing() -> None:
    """Channel 1 is pinned; its weights would have to grow two-million-fold."""
    t = Tiny()
    x = silent(t, [NAN, 1e-6, 2.0])
    out = t.conv(x, weight(2, 3, 3, 3), ("N", 2, 8, 8), pad=1)
    pinned = t.node("gather", [x], ("N", 8, 8), axis=1, indices=np.int64(1))
    selection, made = planned(t.graph(out, pinned))
    assert selection.carriers.sum() == 1
    assert made.folds == ()


def test_of_constants_that_stay_the_largest_carries() -> None:
    t = Tiny()
    x = silent(t, [NAN, 0.5, 2.0, 1.0])
    out = t.conv(x, weight(2, 4, 3, 3), ("N", 2, 8, 8), pad=1)
    pinned = t.node("gather", [x], ("N", 2, 8, 8), axis=1, indices=np.array([1, 2]))
    _, made = planned(t.graph(out, pinned))
    assert [(fold.positions, fold.carrier) for fold in made.folds] == [((3,), 2)]


def test_each_group_of_a_grouped_convolution_has_its_own_carrier() -> None:
    t = Tiny()
    w = weight(4, 3, 3, 3)
    x = silent(t, [NAN, 1.0, 2.0, NAN, 3.0, 4.0])
    graph = t.graph(t.conv(x, w, ("N", 4, 8, 8), pad=1, groups=2))
    _, made = planned(graph)
    assert [(f.positions, f.carrier) for f in made.folds] == [((1,), 2), ((4,), 5)]
    folded = edits_of(graph, made).params[graph.nodes[-1].inputs[1]]
    np.testing.assert_allclose(folded[:2, 1], w[:2, 2] + 0.5 * w[:2, 1], rtol=1e-5)
    np.testing.assert_allclose(folded[2:, 1], w[2:, 2] + 0.75 * w[2:, 1], rtol=1e-5)


def test_a_transposed_convolution_carries_even_in_bias_mode() -> None:
    """Its outputs read different taps, so that a bias is wrong even inside."""
    t = Tiny()
    w = weight(3, 2, 3, 3)
    graph = t.graph(t.conv(silent(t, [NAN, 1.0, 2.0]), w, ("N", 2, 10, 10), op="conv_transpose"))
    _, made = planned(graph, "bias")
    assert [(f.kind, f.positions, f.carrier) for f in made.folds] == [("carrier", (1,), 2)]
    folded = edits_of(graph, made).params[graph.nodes[-1].inputs[1]]
    np.testing.assert_allclose(folded[1], w[2] + 0.5 * w[1], rtol=1e-5)


# --- what cannot be absorbed ------------------------------------------------------------------------------


def test_calls_that_share_weights_lose_only_what_is_the_same_for_both() -> None:
    t = Tiny()
    shared, bias = t.param(weight(2, 3, 1, 1), "shared"), t.param(np.zeros(2, dtype=np.float32), "bias")
    attrs: dict[str, Any] = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "conv_groups": 1}
    first = t.node("conv", [silent(t, [NAN, 1.0, 2.0]), shared, bias], ("N", 2, 8, 8), **attrs)
    second = t.node("conv", [silent(t, [NAN, 1.0, 5.0]), shared, bias], ("N", 2, 8, 8), **attrs)
    graph = t.graph(first, second)
    selection, made = planned(graph)
    assert kept(made, graph.nodes[0].inputs[1]) == (0, 2)
    assert list(selection.clashed) == [graph.nodes[-1].name]
    edits = edits_of(graph, made)
    np.testing.assert_allclose(edits.params["bias"], graph.params["shared"].array[:, 1, 0, 0], rtol=1e-6)


def test_a_carrier_goes_into_the_parameter_that_has_the_columns() -> None:
    t = Tiny()
    x = silent(t, [NAN, 1.0, 2.0])
    v = weight(2, 3, 3, 3)
    computed = t.node("mul", [t.param(v, "v"), t.param(weight(2, 1, 1, 1), "g")], (2, 3, 3, 3))
    attrs: dict[str, Any] = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "conv_groups": 1}
    graph = t.graph(t.node("conv", [x, computed, ""], ("N", 2, 8, 8), **attrs))
    _, made = planned(graph)
    new = edits_of(graph, made).params["v"]
    np.testing.assert_allclose(new, np.stack([v[:, 0], v[:, 2] + 0.5 * v[:, 1]], axis=1), rtol=1e-6)


def test_a_padded_convolution_with_a_weight_scaled_column_by_column_keeps_constants() -> None:
    t = Tiny()
    x = silent(t, [NAN, 1.0, 2.0])
    computed = t.node("mul", [t.param(weight(2, 3, 3, 3), "v"), t.param(weight(2, 3, 1, 1), "g")], (2, 3, 3, 3))
    attrs: dict[str, Any] = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "conv_groups": 1}
    _, made = planned(t.graph(t.node("conv", [x, computed, ""], ("N", 2, 8, 8), **attrs)))
    assert made.is_empty


def test_a_product_of_activations_keeps_constants_that_are_not_zero() -> None:
    t = Tiny()
    x = t.node("reshape", [silent(t, [NAN, 1.0, 0.0])], ("N", 3, 64), shape=["N", 3, 64])
    y = t.node("transpose", [x], ("N", 64, 3), perm=[0, 2, 1])
    graph = t.graph(t.node("matmul", [y, x], ("N", 64, 64)))
    _, made = planned(graph)
    assert kept(made, graph.nodes[0].inputs[1]) == (0, 1)


# --- on real layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
def test_other_paddings_are_exact_too(mode: str) -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 3, padding=1, padding_mode=mode)))
    x = torch.randn(2, 3, 9, 9)
    result = prune_module(net, (x,))
    assert result.report.removed_channels > 0
    assert result.report.carriers == (1 if mode == "zeros" else 0)
    assert_same_function(net, result.module, x, torch.randn(1, 3, 14, 14))


@pytest.mark.parametrize(
    "layer", [nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.MaxPool2d(3, 2, 1)]
)
def test_pools_between_a_constant_and_its_reader_are_exact(layer: nn.Module) -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), layer, nn.Conv2d(8, 4, 3, padding=1)))
    x = torch.randn(2, 3, 9, 9)
    result = prune_module(net, (x,))
    assert_same_function(net, result.module, x, torch.randn(1, 3, 14, 14))


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Hardswish, nn.GELU, nn.ELU, nn.Softplus, nn.Mish])
def test_activations_that_move_zero_are_exact(act: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8, act=act), cbr(8, 8, act=act), nn.Conv2d(8, 2, 3, padding=1)))
    x = torch.randn(2, 3, 9, 9)
    result = prune_module(net, (x,))
    assert result.report.removed_channels > 0
    assert_same_function(net, result.module, x, torch.randn(1, 3, 14, 14))


def test_the_carrier_is_exact_where_dropping_and_biases_are_not() -> None:
    """The three ways to treat a constant at a padded border, side by side."""
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 64), nn.Conv2d(64, 64, 3, padding=1)))
    x = torch.randn(2, 3, 16, 16)
    errors = {}
    for border in ("exact", "bias"):
        result = prune_module(net, (x,), border=border, validate=False)
        with torch.no_grad():
            difference = (net(x) - result.module(x)).abs()
        errors[border] = float(difference.max())
        assert float(difference[..., 1:-1, 1:-1].max()) < 1e-5
    assert errors["exact"] < 1e-5 < 1e-2 < errors["bias"]


# --- one border for all -------------------------------------------------------------------------------


def bordered() -> Graph:
    t = Tiny()
    return t.graph(t.conv(silent(t, [NAN, 2.0, 1.0]), weight(2, 3, 3, 3), ("N", 2, 8, 8), pad=1))


def test_a_plan_has_the_border_of_its_selection() -> None:
    """There is no way to select for the one and to plan for the other."""
    facts = gather_facts(bordered())
    for border, kind, exact in (("bias", "bias", False), ("exact", "carrier", True)):
        made = plan(facts, select(facts, border=border), ())
        assert ({fold.kind for fold in made.folds}, made.exact) == ({kind}, exact)


def test_an_exact_border_without_a_carrier_is_a_fault_and_no_bias() -> None:
    facts = gather_facts(bordered())
    selection = replace(select(facts, border="bias"), border="exact")
    with pytest.raises(InternalError, match="no constant stays to carry the borders of conv"):
        plan(facts, selection, ())


# --- all of a read's absorptions at once --------------------------------------------------------------


class _Mixed(nn.Module):
    """Depthwise, grouped, transposed and plain convolutions, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            cbr(3, 12), cbr(12, 12, groups=12), cbr(12, 12, groups=3), nn.AvgPool2d(3, 1, 1), cbr(12, 12),
            nn.ConvTranspose2d(12, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("border", ["exact", "bias"])
def test_absorptions_of_a_read_are_judged_together_as_each_alone(seed: int, border: str) -> None:
    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), _Mixed().eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.mul_(torch.rand(layer.num_features) > 0.6)
                layer.bias.copy_(torch.rand(layer.num_features) - 0.3)
        conv, norm, _ = net.body[4]
        norm.weight[3], conv.weight[5], norm.weight[5], norm.bias[5] = 1, 2 * conv.weight[3], 1, 2 * norm.bias[3]
    facts = gather_facts(trace(net, (torch.zeros(1, 3, 12, 12),)).graph)
    keep, exact = (rng.random(facts.classes.num_classes) > share for share in (0.6, 0.3))
    wanted = select(facts).wanted
    given = (facts.classes, facts.reads, wanted, keep)
    each = [a for a in absorptions(*given) if a.carried(exact, border).any()]
    expected = [a for a in each if not (a.carriers() & ~a.removed).any()]
    found = [losses.absorption(n) for losses in _losses(*given) for n in losses.waiting(exact, border).tolist()]
    assert [(a.read, a.positions.tolist(), a.profile) for a in found] == [
        (a.read, a.positions.tolist(), a.profile) for a in expected
    ]
    into_biases = {
        a.read.node.name
        for a in absorptions(*given)
        if not a.varies and (a.removed & a.constant & ~a.carried(exact, border)).any()
    }
    unbiased = {read.node.name for read in facts.reads if bias_target(facts.graph, read.node) == ("bias", "")}
    assert new_biases(facts.graph, *given, border, exact) == into_biases & unbiased


def test_carriers_are_chosen_without_making_an_absorption_of_each_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(cbr(3, 64), cbr(64, 64, groups=64), cbr(64, 8)).eval()
    with torch.no_grad():
        net[0][1].weight[::2] = 0
        net[0][1].bias[:] = 1
    made = list[int]()
    absorption = carriers._Losses.absorption
    monkeypatch.setattr(carriers._Losses, "absorption", lambda s, number: made.append(number) or absorption(s, number))
    gathered = gather_facts(trace(net, (torch.zeros(1, 3, 12, 12),)).graph)
    select(gathered)
    assert len(made) < 8
