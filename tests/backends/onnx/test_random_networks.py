"""Random networks as files: exact removal, any plan against the masked network, both frontends alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from modules.strategies import IN_CHANNELS, SIZE, RandomNet, Spec, build, specs
from onnx_models.masks import some_classes, with_masks
from onnx_models.nets import export_as_it_is, num_removed, prune, random_feeds, run
from torch import Tensor

from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import model_bytes
from prunec.frontends.onnx.frontend import trace_onnx
from prunec.ir.edits import CannotRewrite
from prunec.passes.groups import group_classes
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import plan, select
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import freed, read_module


def random_model(spec: Spec, folder: Path, *, dynamic: bool) -> tuple[RandomNet, Tensor, onnx.ModelProto]:
    """Return a random network, an input for it, and its ONNX form."""
    module = build(spec, zeros=0.5).float()
    x = torch.randn(2, IN_CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(spec.seed))
    path = folder / "random.onnx"
    export_as_it_is(module, x, path, dynamic=dynamic)
    return module, x, onnx.load(path)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property: hypothesis does not renew function fixtures."""
    return tmp_path_factory.mktemp("random")


@given(specs(), st.booleans())
@settings(max_examples=30)
def test_exact_removal_computes_the_same_function(workshop: Path, spec: Spec, dynamic: bool) -> None:
    net, _, model = random_model(spec, workshop, dynamic=dynamic)
    sizes = [{"n": 2, "h": SIZE, "w": SIZE}]
    if dynamic and net.any_size:
        sizes.append({"n": 1, "h": 16, "w": 20})
    _, made, source = prune(model)
    note(f"{spec}\nremoved {num_removed(made)}")
    pruned = onnx.load_from_string(model_bytes(source))
    onnx.checker.check_model(pruned, full_check=True)
    # InstanceNorm divides by the spread of what may be constant: there the original's own rounding shows.
    normalised = any(("norm", "in") in step.options for step in spec.steps)
    for number, chosen in enumerate(sizes):
        assert_close(model, pruned, random_feeds(model, chosen, number), 1e-2 if normalised else 1e-4)


@given(specs(), st.integers(0, 2**16))
@settings(max_examples=30)
def test_any_plan_equals_the_masked_network(workshop: Path, spec: Spec, seed: int) -> None:
    """Channels are taken away at random; the reference reads them as zero instead."""
    _, _, model = random_model(spec, workshop, dynamic=False)
    traced = trace_onnx(model)
    traced = replace(traced, graph=freed(traced.graph))
    facts = gather_facts(traced.graph)
    selection = select(facts, some_classes(facts, seed))
    made = plan(facts, selection, ())
    try:
        source = apply_onnx(traced, lower(traced.graph, facts.classes, made, facts.constants))
    except CannotRewrite:
        return
    note(f"{spec}\nremoved {int((~selection.keep).sum())} classes")
    masked = with_masks(model, traced, facts, selection.keep)
    pruned = onnx.load_from_string(model_bytes(source))
    normalised = any(("norm", "in") in step.options for step in spec.steps)
    assert_close(masked, pruned, random_feeds(model), 1e-2 if normalised else 1e-4)


@given(specs())
@settings(max_examples=20)
def test_pruning_a_random_network_twice_changes_nothing_more(workshop: Path, spec: Spec) -> None:
    _, _, model = random_model(spec, workshop, dynamic=False)
    _, once, source = prune(model)
    _, twice, _ = prune(onnx.load_from_string(model_bytes(source)))
    note(f"{spec}\nremoved {num_removed(once)}, then {num_removed(twice)}")
    assert num_removed(twice) == 0


@given(specs())
@settings(max_examples=30)
def test_both_frontends_find_the_same_channels(workshop: Path, spec: Spec) -> None:
    # What an ONNX file computes from constants is folded: standardised weights are plain weights there.
    assume(not any(step.kind == "standardised" for step in spec.steps))
    # PyTorch takes InstanceNorm apart with a reshape that merges batch and channels; ONNX has it whole.
    assume(not any(("norm", "in") in step.options for step in spec.steps))
    net, x, model = random_model(spec, workshop, dynamic=False)
    found = []
    for graph in (read_module(net, (x,)).graph, freed(trace_onnx(model).graph)):
        facts = gather_facts(graph)
        chosen = select(facts)
        classes = facts.classes
        found.append(
            {
                "channels": int(classes.is_channel.sum()),
                "prunable": int((classes.is_channel & ~classes.pinned).sum()),
                "removed": int((classes.is_channel & ~chosen.keep).sum()),
                "coupled": sorted(len(group) for group in group_classes(classes)),
                "balanced": sorted(balance.out_ids.shape for balance in classes.balances),
            }
        )
    note(str(spec))
    assert found[0] == found[1]


def assert_close(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Any], tolerance: float = 1e-4
) -> None:
    """Compare two models' outputs, relative to the largest value; random networks may have nothing to say."""
    for expected, got in zip(*(run(model.SerializeToString(), feeds) for model in (before, after)), strict=True):
        assert expected.shape == got.shape
        scale = float(np.abs(expected).max(initial=0)) or 1.0
        assert float(np.abs(expected - got).max(initial=0)) <= tolerance * scale
