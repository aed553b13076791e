"""What a search counts: the numbers of a whole recount, from the layers that a step changes alone."""

from __future__ import annotations

import numpy as np
import pytest
from graphs.tiny import Tiny
from modules.networks import NETWORKS, make

from prunec.ir.arrays import Mask
from prunec.ir.labels import Kept
from prunec.passes.selection import needs as needs_module
from prunec.passes.selection import recounts
from prunec.passes.selection.recounts import Recounts
from prunec.passes.selection.select import Demands, Facts, carried_out, demands_of, recount
from prunec.passes.selection.widths import widths
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module


def demands_on(facts: Facts) -> Demands:
    return demands_of(facts, "exact", widths(facts.classes, 1), None)


def wishes(facts: Facts, count: int, seed: int = 0) -> list[Mask]:
    """Return masks as a search asks for them: from whole to nearly nothing and back, in small and in large steps."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(facts.classes.num_classes)
    found = []
    for share in rng.random(count) ** 0.5:
        keep = np.ones(order.size, dtype=bool)
        keep[order[: int(share * order.size)]] = False
        found.append(keep)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_search_counts_what_a_whole_recount_does(name: str) -> None:
    facts = gather_facts(read_module(make(name), NETWORKS[name].inputs()).graph)
    demands = demands_on(facts)
    counted = Recounts(demands)
    for wish in wishes(facts, 12):
        selection = carried_out(demands, wish)
        whole = recount(facts, selection)
        assert counted.count(selection) == (whole.macs, whole.params)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sweep_finds_what_still_runs_as_one_over_the_whole_graph_does(name: str) -> None:
    facts = gather_facts(read_module(make(name), NETWORKS[name].inputs()).graph)
    sweep = needs_module.Sweep(facts.graph, facts.classes, facts.constants)
    for wish in [*wishes(facts, 12, seed=1), *(wish | facts.classes.pinned for wish in wishes(facts, 12, seed=2))]:
        kept = Kept(facts.classes, wish)
        found, whole = sweep(kept), needs_module.needs(facts.graph, kept, facts.constants)
        assert (found.nodes, found.dropped, found.cuts.keys()) == (whole.nodes, whole.dropped, whole.cuts.keys())
        assert all(found.cuts[key] is whole.cuts[key] for key in whole.cuts)


def chain(depth: int) -> Facts:
    t, rng = Tiny(), np.random.default_rng(0)
    x = t.input("N", 3, 8, 8)
    for place in range(depth):
        weight = rng.normal(size=(8, 8 if place else 3, 1, 1)).astype(np.float32)
        x = t.conv(x, weight, ("N", 8, 8, 8))
    return gather_facts(t.graph(x))


def test_a_step_of_a_search_counts_the_layers_that_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = chain(40)
    demands = demands_on(facts)
    counted, wish = Recounts(demands), np.ones(facts.classes.num_classes, dtype=bool)
    counted.count(carried_out(demands, wish))
    seen: list[str] = []
    count = recounts.node_cost
    monkeypatch.setattr(recounts, "node_cost", lambda node, *rest: seen.append(node.name) or count(node, *rest))
    wish[facts.classes.class_of[facts.classes.labels[facts.graph.nodes[20].outputs[0]].fields[0].ravel()[0]]] = False
    counted.count(carried_out(demands, wish))
    assert sorted(seen) == sorted(node.name for node in facts.graph.nodes[20:22])


def test_masks_that_leave_the_same_nodes_are_swept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = chain(10)
    demands = demands_on(facts)
    swept: list[int] = []
    sweep = needs_module.needs
    monkeypatch.setattr(needs_module, "needs", lambda *given: swept.append(1) or sweep(*given))
    for owner in np.flatnonzero(~facts.classes.pinned)[:20]:
        wish = np.ones(facts.classes.num_classes, dtype=bool)
        wish[owner] = False
        carried_out(demands, wish)
    assert len(swept) == 1
