"""Legalisation: what is given back until a keep mask can be carried out, and no more than that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from assertions import assert_same_function, outputs_of
from graphs.tiny import Tiny
from modules.blocks import cbr
from modules.networks import NETWORKS, make
from torch import nn

from prunec.api import Pruned, prune_module
from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph
from prunec.passes.selection import legal as legal_module
from prunec.passes.selection.legal import legalise
from prunec.passes.selection.needs import Sweep
from prunec.passes.selection.select import Facts, select
from prunec.pipeline.planning import gather_facts


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def grouped(out: int = 6) -> Graph:
    """Conv 3->8, grouped conv 8->out in two groups, conv out->2."""
    t = Tiny()
    x = t.conv(t.input("N", 3, 8, 8), weight(8, 3, 1, 1), ("N", 8, 8, 8))
    x = t.conv(x, weight(out, 4, 1, 1), ("N", out, 8, 8), groups=2)
    return t.graph(t.conv(x, weight(2, out, 1, 1), ("N", 2, 8, 8)))


def chain() -> Graph:
    t = Tiny()
    x = t.conv(t.input("N", 3, 8, 8), weight(4, 3, 1, 1), ("N", 4, 8, 8))
    return t.graph(t.conv(x, weight(2, 4, 1, 1), ("N", 2, 8, 8)))


def owners(facts: Facts, number: int, axis: int = 0) -> list[int]:
    """Return the classes along an axis of the ``number``-th node's weight."""
    param = facts.graph.nodes[number].inputs[1]
    member = next(m for m in facts.classes.members if (m.param, m.axis) == (param, axis))
    return [int(c) for c in facts.classes.class_of[member.ids]]


def without(facts: Facts, *gone: int) -> Mask:
    keep = np.ones(facts.classes.num_classes, dtype=bool)
    keep[list(gone)] = False
    return keep


def legal(facts: Facts, keep: Mask, priority: Any = None) -> tuple[Mask, dict[str, Mask]]:
    order = np.zeros(facts.classes.num_classes) if priority is None else priority
    return legalise(Sweep(facts.graph, facts.classes, facts.constants), keep, order)[:2]


def stays(facts: Facts, keep: Mask, number: int) -> list[bool]:
    return [bool(k) for k in keep[owners(facts, number)]]


def test_a_legal_mask_is_left_as_it_is() -> None:
    facts = gather_facts(chain())
    wish = without(facts, *owners(facts, 0)[:2])
    keep, given = legal(facts, wish)
    np.testing.assert_array_equal(keep, wish)
    assert given == {}


def test_groups_keep_equally_many_inputs() -> None:
    facts = gather_facts(grouped())
    inputs = owners(facts, 0)
    keep, given = legal(facts, without(facts, *inputs[:3], inputs[4]))
    kept = stays(facts, keep, 0)
    assert (sum(kept[:4]), sum(kept[4:])) == (3, 3)
    assert list(given) == ["conv1"]
    assert int(given["conv1"].sum()) == 2


def test_the_slots_that_stay_may_differ_from_group_to_group() -> None:
    facts = gather_facts(grouped())
    inputs = owners(facts, 0)
    wish = without(facts, inputs[0], inputs[1], inputs[6], inputs[7])
    keep, given = legal(facts, wish)
    np.testing.assert_array_equal(keep, wish)
    assert given == {}


def test_groups_keep_equally_many_outputs() -> None:
    facts = gather_facts(grouped())
    outputs = owners(facts, 1)
    keep, _ = legal(facts, without(facts, outputs[0], outputs[1]))
    assert stays(facts, keep, 1) == [True] * 6


def test_a_whole_group_may_go_with_its_inputs_and_outputs() -> None:
    facts = gather_facts(grouped())
    wish = without(facts, *owners(facts, 0)[:4], *owners(facts, 1)[:3])
    keep, given = legal(facts, wish)
    np.testing.assert_array_equal(keep, wish)
    assert given == {}


def test_a_group_that_is_still_read_gets_an_input_back() -> None:
    facts = gather_facts(grouped())
    keep, _ = legal(facts, without(facts, *owners(facts, 0)[:4]))
    kept = stays(facts, keep, 0)
    assert sum(kept[:4]) == sum(kept[4:]) > 0


def test_the_highest_priority_is_given_back_first() -> None:
    facts = gather_facts(grouped())
    inputs = owners(facts, 0)
    priority = np.zeros(facts.classes.num_classes)
    priority[inputs[2]] = 1.0
    keep, _ = legal(facts, without(facts, *inputs[:3], inputs[4], inputs[5]), priority)
    assert stays(facts, keep, 0) == [False, False, True, True, False, False, True, True]


def test_a_layer_that_is_read_keeps_one_channel() -> None:
    facts = gather_facts(chain())
    priority = np.zeros(facts.classes.num_classes)
    priority[owners(facts, 0)[2]] = 1.0
    keep, given = legal(facts, without(facts, *owners(facts, 0)), priority)
    assert stays(facts, keep, 0) == [False, False, True, False]
    assert given


def test_one_channel_serves_every_layer_that_would_be_empty() -> None:
    t = Tiny()
    x = t.conv(t.input("N", 3, 8, 8), weight(5, 3, 1, 1), ("N", 5, 8, 8))
    part = t.node("slice", [x], ("N", 2, 8, 8), axes=[1], starts=[1], ends=[3], steps=[1])
    facts = gather_facts(t.graph(t.conv(part, weight(2, 2, 1, 1), ("N", 2, 8, 8))))
    keep, _ = legal(facts, without(facts, *owners(facts, 0)))
    assert stays(facts, keep, 0) == [False, True, False, False, False]


def test_only_nodes_at_an_empty_layer_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    t = Tiny()
    x = t.conv(t.input("N", 3, 8, 8), weight(4, 3, 1, 1), ("N", 4, 8, 8))
    for _ in range(20):
        x = t.conv(t.node("relu", [x], ("N", 4, 8, 8)), weight(4, 4, 1, 1), ("N", 4, 8, 8))
    facts = gather_facts(t.graph(x))
    seen: list[str] = []
    fill = legal_module._fill
    monkeypatch.setattr(legal_module, "_fill", lambda node, *rest: seen.append(node.name) or fill(node, *rest))
    keep, _ = legal(facts, without(facts, *owners(facts, 10)))
    assert sum(stays(facts, keep, 10)) == 1
    assert seen == ["conv12", "relu11", "conv10"], "last first"


def test_legalising_only_ever_keeps_more_and_is_stable() -> None:
    rng = np.random.default_rng(0)
    facts = gather_facts(grouped(8))
    for _ in range(20):
        wish = (rng.random(facts.classes.num_classes) > 0.5) | facts.classes.pinned
        keep, _ = legal(facts, wish)
        assert (keep >= wish).all()
        again, given = legal(facts, keep)
        np.testing.assert_array_equal(again, keep)
        assert given == {}


def test_a_wish_never_removes_what_is_pinned() -> None:
    facts = gather_facts(chain())
    nothing = np.zeros(facts.classes.num_classes, dtype=bool)
    assert (select(facts, nothing).keep >= facts.classes.pinned).all()


def resnext(zeros: tuple[int, ...]) -> tuple[nn.Module, Pruned]:
    """Prune a grouped convolution of 3x4 channels whose given inputs are silent and dead."""
    torch.manual_seed(0)
    net = nn.Sequential(cbr(3, 12), cbr(12, 12, groups=3), nn.Conv2d(12, 2, 1)).eval()
    with torch.no_grad():
        net[0][1].weight[list(zeros)] = 0
        net[0][1].bias.copy_(torch.linspace(-1, -0.5, 12))
    x = torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,))
    assert_same_function(net, result.module, x)
    return net, result


def grouped_layer(result: Pruned) -> nn.Conv2d:
    layer = result.module.get_submodule("1.0")
    assert isinstance(layer, nn.Conv2d)
    return layer


def test_a_group_keeps_the_most_that_any_group_needs() -> None:
    _, result = resnext((0, 1, 4, 5, 8))
    layer = grouped_layer(result)
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 9, 12)
    assert any("equally many channels per group" in b.reason for b in result.report.blocked)


def test_groups_whose_slots_differ_are_packed() -> None:
    _, result = resnext((0, 1, 5, 6, 8, 11))
    layer = grouped_layer(result)
    assert (layer.groups, layer.in_channels) == (3, 6)
    assert tuple(layer.weight.shape) == (12, 2, 3, 3)


def test_budgets_keep_grouped_layers_runnable() -> None:
    for seed in range(3):
        net, case = make("resnext", 0.0), NETWORKS["resnext"]
        result = prune_module(net, case.inputs(), criterion="random", target_macs=0.4, seed=seed)
        assert outputs_of(result.module, *case.inputs())[0].shape == (2, 10)
