"""Properties that hold for every network: exact removal, plans as masks, bookkeeping."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

from assertions import TIGHT, assert_same_function, contraction_macs, outputs_of, parameter_elements, relative_error
from hypothesis import given, note, settings
from hypothesis import strategies as st
from masking import error_of_a_plan
from modules.strategies import Spec, batch_of, build, specs

from prunec.api import prune_module
from prunec.ir.plan import PrunePlan
from prunec.passes.rewrites import gates, residuals
from prunec.passes.rewrites.gates import gate_folds_of
from prunec.passes.rewrites.residuals import expansions_of
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module


@given(specs(), st.sampled_from([0.3, 0.6, 0.95]))
@settings(max_examples=120, deadline=None)
def test_exact_removal_computes_the_same_function(spec: Spec, zeros: float) -> None:
    net = build(spec, zeros)
    result = prune_module(net, (batch_of(spec),), validate=False)
    note(f"{spec}\nremoved {result.report.removed_channels}")
    batches = [batch_of(spec)] + ([batch_of(spec, 16)] if net.any_size else [])
    assert_same_function(net, result.module, *batches, tolerance=TIGHT)
    assert result.plan.exact


@given(specs(gated=True), st.sampled_from([0.3, 0.6]))
@settings(max_examples=120, deadline=None)
def test_expanded_sums_and_folded_gates_compute_the_same_function(spec: Spec, zeros: float) -> None:
    net = build(spec, zeros)
    batch = batch_of(spec)
    with free_rewrites():
        result = prune_module(net, (batch,), validate=False, residual="expand", gates="fold")
        twice = prune_module(result.module, (batch,), validate=False, residual="expand", gates="fold")
    note(f"{spec}\nremoved {result.report.removed_channels}, {result.plan.expansions}, {result.plan.gate_folds}")
    batches = [batch] + ([batch_of(spec, 16)] if net.any_size else [])
    assert_same_function(net, result.module, *batches, tolerance=TIGHT)
    assert_same_function(net, apply_plan(net, PrunePlan.from_json(result.plan.to_json())), batch, tolerance=TIGHT)
    assert result.plan.exact
    assert result.report.after.params == parameter_elements(result.module)
    if not any(step.kind == "standardised" for step in spec.steps):
        assert result.report.after.macs == contraction_macs(result.module, batch)
    # Equal counts per group are found step by step where an expansion changes what a grouped layer reads. Where the
    # outputs hang on nothing, all but one channel of each layer goes, and what that one makes is constant only then.
    follows = relative_error(outputs_of(net, batch), outputs_of(net, 1 - 2 * batch)) > 0
    if follows and not any(step.kind in ("grouped", "transposed") for step in spec.steps):
        assert (twice.report.removed_channels, twice.plan.expansions, twice.plan.gate_folds) == (0, (), ())


@contextlib.contextmanager
def free_rewrites() -> Iterator[None]:
    """Let every rewrite pay that saves anything: networks this small would seldom gain from one."""
    with patch.object(residuals, "COPY_MACS", 0), patch.object(gates, "ADD_MACS", 0):
        yield


@given(specs(), st.sampled_from([0.0, 0.5]), st.integers(0, 2**16), st.booleans())
@settings(max_examples=120, deadline=None)
def test_any_plan_equals_the_masked_network(spec: Spec, zeros: float, seed: int, expanded: bool) -> None:
    net = build(spec, zeros)
    batch = batch_of(spec)
    traced = read_module(net, (batch,))
    facts = gather_facts(traced.graph)
    if expanded:
        with free_rewrites():
            facts, _ = gate_folds_of(facts, gather_facts)
            facts, _ = expansions_of(facts, gather_facts)
        traced = replace(traced, graph=facts.graph)
    error, removed = error_of_a_plan(traced, facts, batch, seed)
    note(f"{spec}\nremoved {removed} classes")
    assert error <= TIGHT


@given(specs(), st.sampled_from([0.4, 0.8]))
@settings(max_examples=40, deadline=None)
def test_reported_counts_are_those_of_the_result(spec: Spec, zeros: float) -> None:
    net = build(spec, zeros)
    batch = batch_of(spec)
    result = prune_module(net, (batch,), validate=False)
    note(str(spec))
    report = result.report
    assert parameter_elements(result.module) <= parameter_elements(net)
    assert report.after.macs <= report.before.macs
    assert report.before.params <= parameter_elements(net)  # less where the network has layers that nothing reads
    assert report.after.params == parameter_elements(result.module)
    functional = any(step.kind == "standardised" for step in spec.steps)
    if not functional:
        assert report.before.macs <= contraction_macs(net, batch)
        assert report.after.macs == contraction_macs(result.module, batch)


@given(specs(), st.sampled_from([0.4, 0.8]))
@settings(max_examples=30, deadline=None)
def test_pruning_twice_changes_nothing_more(spec: Spec, zeros: float) -> None:
    net = build(spec, zeros)
    once = prune_module(net, (batch_of(spec),), validate=False)
    twice = prune_module(once.module, (batch_of(spec),), validate=False)
    note(f"{spec}\n{once.report.removed_channels}, then {twice.report.removed_channels}")
    assert twice.report.removed_channels == 0
