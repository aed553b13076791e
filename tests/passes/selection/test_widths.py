"""Widths: layers keep what kernels like, and budgets hold all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from assertions import outputs_of, relative_error
from hypothesis import given, note, settings
from hypothesis import strategies as st
from masking import Masked
from modules.strategies import IN_CHANNELS, SIZE, Spec, build, specs
from torch import Tensor, nn

from prunec.api import prune_module
from prunec.backends.fx.backend import apply_edits
from prunec.errors import BudgetNotMet
from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph
from prunec.passes.cost import as_it_came, cost
from prunec.passes.groups import group_classes
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.budget import Target, select_budget
from prunec.passes.selection.criteria import score
from prunec.passes.selection.select import Facts, plan, recount, select
from prunec.passes.selection.widths import AUTO, in_step, round_up, step_for, step_in_group, widths
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import input_specs, read_module


@pytest.mark.parametrize(
    ("channels", "step"), [(4, 4), (8, 4), (15, 4), (16, 8), (24, 8), (31, 8), (32, 16), (64, 16), (1024, 16)]
)
def test_the_step_of_a_layer_follows_its_width(channels: int, step: int) -> None:
    assert step_for(channels, AUTO) == step
    assert step_for(channels, 6) == 6


@pytest.mark.parametrize(("channels", "step"), [(4, 4), (8, 8), (16, 8), (32, 8), (64, 16)])
def test_groups_of_a_grouped_convolution_change_in_blocks_or_go_as_a_whole(channels: int, step: int) -> None:
    assert step_in_group(channels, AUTO) == step
    assert step_in_group(channels, 16) == 1


def graph_of(net: nn.Module, channels: int = 3) -> Graph:
    return read_module(net.eval(), (torch.zeros(2, channels, 8, 8),)).graph


def pair(*sizes: int) -> Facts:
    """Return the facts of 1x1 convolutions in a row: 3 -> each of ``sizes`` -> 2."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    before = 3
    for size in (*sizes, 2):
        layers += [nn.Conv2d(before, size, 1), nn.ReLU()]
        before = size
    return gather_facts(graph_of(nn.Sequential(*layers)))


def group(facts: Facts, size: int) -> Any:
    """Return the coupled group of so many channels."""
    return np.asarray(next(g for g in group_classes(facts.classes) if len(g) == size))


def test_rounding_up_fills_a_group_to_its_step_with_what_matters_most() -> None:
    facts = pair(16)
    mine, found = group(facts, 16), widths(facts.classes, AUTO)
    keep, priority = np.ones(facts.classes.num_classes, dtype=bool), np.zeros(facts.classes.num_classes)
    keep[mine[5:]] = False
    priority[mine[[7, 9, 15]]] = 1.0
    kept = round_up(found.steps, keep, priority)
    assert np.flatnonzero(kept[mine]).tolist() == [0, 1, 2, 3, 4, 7, 9, 15]
    keep[mine] = False
    np.testing.assert_array_equal(round_up(found.steps, keep, priority), keep)


def test_rounding_up_never_exceeds_the_group() -> None:
    facts = pair(6)
    mine, found = group(facts, 6), widths(facts.classes, 8)
    keep = np.ones(facts.classes.num_classes, dtype=bool)
    keep[mine[1:]] = False
    assert round_up(found.steps, keep, np.zeros(facts.classes.num_classes))[mine].all()


class Halves(nn.Module):
    """A sum of 12 channels of which the second operand brings 6 from each of two layers: groups of 6, axes of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.end = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)
        self.parts = nn.ModuleList(nn.Conv2d(3, 6, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.relu(self.whole(x) + torch.cat([part(x) for part in self.parts], 1)))


def test_narrow_groups_side_by_side_are_rounded_together() -> None:
    facts = gather_facts(graph_of(Halves()))
    chosen = select_budget(facts, score(facts, "l1"), Target(macs=0.75), multiple_of=AUTO)
    (end,) = (node for node in facts.graph.nodes if facts.graph.shape(node.outputs[0])[1] == 2)  # type: ignore[index]
    member = next(m for m in facts.classes.members if (m.param, m.axis) == (end.inputs[1], 1))
    assert int(chosen.keep[facts.classes.class_of[member.ids]].sum()) in (4, 8)


def grouped(groups: int, width: int) -> Facts:
    """Return the facts of a grouped convolution between two others."""
    torch.manual_seed(0)
    count = groups * width
    middle = nn.Conv2d(count, count, 3, padding=1, groups=groups)
    return gather_facts(graph_of(nn.Sequential(nn.Conv2d(3, count, 1), middle, nn.ReLU(), nn.Conv2d(count, 2, 1))))


@pytest.mark.parametrize(("groups", "width", "left"), [(8, 4, {0, 4}), (4, 16, {8, 16}), (2, 64, {16, 32, 48, 64})])
def test_grouped_convolutions_keep_blocks_in_each_group(groups: int, width: int, left: set[int]) -> None:
    facts = grouped(groups, width)
    for share in (0.7, 0.5):
        chosen = select_budget(facts, score(facts, "l1"), Target(macs=share), multiple_of=AUTO)
        (balance,) = facts.classes.balances
        for ids in (balance.in_ids, balance.out_ids):
            counts = chosen.keep[facts.classes.class_of[ids]].sum(axis=1)
            assert set(counts.tolist()) <= left
            assert len(set(counts[counts > 0].tolist())) == 1


def test_whole_groups_share_one_score_and_slots_of_wide_ones_too() -> None:
    facts = grouped(8, 4)
    (balance,) = facts.classes.balances
    scores = np.random.default_rng(0).random(facts.classes.num_classes)
    found = in_step(facts.classes, widths(facts.classes, AUTO), scores)
    rows = [found[facts.classes.class_of[ids]] for ids in (balance.in_ids, balance.out_ids)]
    both = np.concatenate(rows, axis=1)
    np.testing.assert_allclose(both, np.broadcast_to(both[:, :1], both.shape))
    assert len(np.unique(both)) == 8
    found = in_step(facts.classes, widths(facts.classes, 1), scores)
    rows = [np.sort(found[facts.classes.class_of[ids]], axis=1) for ids in (balance.in_ids, balance.out_ids)]
    for side in rows:
        np.testing.assert_allclose(side, np.broadcast_to(side[:1], side.shape))


def test_a_budget_that_blocks_cannot_meet_is_met_with_finer_steps() -> None:
    facts = pair(8, 8)
    whole = cost(facts.graph).macs
    chosen = select_budget(facts, score(facts, "l1"), Target(macs=0.2), multiple_of=AUTO)
    assert recount(facts, chosen).macs <= 0.2 * whole
    with pytest.raises(BudgetNotMet, match=r"with one channel left per group 5\.\d%"):
        select_budget(facts, score(facts, "l1"), Target(macs=0.01), multiple_of=AUTO)


def test_only_what_scores_remove_is_rounded_by_default() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.Conv2d(16, 2, 1)).eval()
    with torch.no_grad():
        net[0].weight[:3] = 0
    batch = (torch.randn(2, 3, 8, 8),)
    assert prune_module(net, batch).module.get_submodule("0").out_channels == 13
    by_score = prune_module(net, batch, criterion="l1", target_macs=0.9)
    assert by_score.module.get_submodule("0").out_channels == 8


def batch_of(spec: Spec) -> Tensor:
    generator = torch.Generator().manual_seed(spec.seed)
    return torch.randn(2, IN_CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)


@given(specs(), st.sampled_from([0.3, 0.5, 0.8]), st.sampled_from(["l1", "random"]), st.sampled_from([AUTO, 1, 3]))
@settings(max_examples=60, deadline=None)
def test_budgets_hold_at_round_widths_and_the_plan_is_the_masked_network(
    spec: Spec, share: float, criterion: str, multiple: Any
) -> None:
    batch = batch_of(spec)
    traced = read_module(build(spec, 0.0), (batch,))
    facts = gather_facts(traced.graph)
    note(str(spec))
    try:
        chosen = select_budget(facts, score(facts, criterion), Target(macs=share), multiple_of=multiple)
    except BudgetNotMet:
        return
    assert recount(facts, chosen).macs <= share * cost(as_it_came(facts.graph)).macs
    again = select(facts, chosen.keep, multiple_of=1)
    np.testing.assert_array_equal(again.keep, chosen.keep)
    if multiple != AUTO:
        assert_round(facts, chosen.keep, multiple)
    made = plan(facts, chosen, input_specs(traced.graph, (batch,)))
    pruned = apply_edits(traced, lower(traced.graph, facts.classes, made, facts.constants))
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(Masked(traced, facts, chosen.keep).run(batch.clone()))
    expected = [leaf for leaf in expected if isinstance(leaf, Tensor)]
    assert relative_error(expected, outputs_of(pruned, batch)) <= 1e-9


def assert_round(facts: Facts, keep: Mask, multiple: int) -> None:
    for members in map(np.asarray, group_classes(facts.classes)):
        kept = int(keep[members].sum())
        assert kept % multiple == 0 or kept == members.size or members.size < multiple


@given(specs(), st.sampled_from([0.4, 0.6, 0.9]))
@settings(max_examples=60, deadline=None)
def test_widths_follow_the_layer_wherever_blocks_meet_the_budget(spec: Spec, share: float) -> None:
    facts = gather_facts(read_module(build(spec, 0.0), (batch_of(spec),)).graph)
    note(str(spec))
    found = widths(facts.classes, AUTO)
    try:
        chosen = select_budget(facts, score(facts, "l1"), Target(macs=share), multiple_of=AUTO)
    except BudgetNotMet:
        return
    scores = in_step(facts.classes, found, score(facts, "l1"))
    blocks = select(facts, ~facts.classes.is_channel, multiple_of=AUTO, priority=scores)
    if recount(facts, blocks).macs > share * cost(as_it_came(facts.graph)).macs:
        return  # the steps were made finer
    for step in found.steps:
        kept = int(chosen.keep[step.classes].sum())
        assert kept % step.size == 0 or chosen.keep[step.free].all()
