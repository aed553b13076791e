"""Properties over networks of modules/handmade.py: movements written by hand, weights that several layers read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from assertions import TIGHT, assert_same_function, in_time
from hypothesis import given, note, settings
from hypothesis import strategies as st
from masking import error_of_a_plan
from modules.handmade import BY_HAND, READS
from modules.strategies import Spec, Step, batch_of, build, specs
from onnx_models.nets import Net, assert_pruned_agrees

from prunec.api import prune_module
from prunec.ir.edits import CannotRewrite
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module

WILD = specs(wild=True)


@given(WILD, st.sampled_from([0.3, 0.6, 0.95]))
@settings(max_examples=150, deadline=None)
def test_exact_removal_computes_the_same_function(spec: Spec, zeros: float) -> None:
    net = build(spec, zeros)
    with in_time():
        result = prune_module(net, (batch_of(spec),), validate=False)
    note(f"{spec}\nremoved {result.report.removed_channels}")
    assert_same_function(net, result.module, batch_of(spec), tolerance=TIGHT)
    assert result.plan.exact


@given(WILD, st.sampled_from([0.0, 0.5]), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_any_plan_equals_the_masked_network(spec: Spec, zeros: float, seed: int) -> None:
    net = build(spec, zeros)
    batch = batch_of(spec)
    traced = read_module(net, (batch,))
    facts = gather_facts(traced.graph)
    try:
        error, removed = error_of_a_plan(traced, facts, batch, seed)
    except CannotRewrite:
        return  # what a backend cannot write is pinned and planned anew
    note(f"{spec}\nremoved {removed} classes")
    assert error <= TIGHT


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("how", BY_HAND)
def test_constants_go_through_a_movement_by_hand(how: str, padding: int) -> None:
    """Twelve channels, half of them constants of different values, moved and read by a convolution."""
    scale = 2 if BY_HAND[how].scale > 1 else 1
    steps = (
        conv_step(0, 12, stride=scale, kernel=1),
        Step("by_hand", (1, 0 if scale == 1 else 1), (("how", how),)),
        conv_step(2, 4, kernel=1 + 2 * padding),
    )
    for zeros in (0.5, 0.9):
        assert_exact(Spec(steps, "conv", 1), zeros)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("second", READS)
@pytest.mark.parametrize("first", ["", *READS])
def test_a_weight_that_is_read_twice_takes_no_carrier_that_spoils_the_other(
    first: str, second: str, kernel: int
) -> None:
    """A square weight, read as a convolution does, then in one or two other ways, each behind constants."""
    steps = [conv_step(0, 6), conv_step(1, 6, kernel=kernel)]
    for how in filter(None, (first, second)):
        steps.append(Step("again", (len(steps),), (("of", 1), ("how", how), ("out", 6))))
        steps.append(Step("norm", (len(steps),)))
    for zeros in (0.5, 0.7):
        assert_exact(Spec(tuple(steps), "conv", 3), zeros)


def conv_step(reads: int, out: int, *, stride: int = 1, kernel: int = 3) -> Step:
    """A convolution with a BatchNorm and no activation."""
    fixed = {"dilation": 1, "bias": True, "groups": 1, "norm": "bn", "act": "none"}
    return Step("conv", (reads,), tuple({"out": out, "kernel": kernel, "stride": stride, **fixed}.items()))


def assert_exact(spec: Spec, zeros: float) -> None:
    net = build(spec, zeros)
    result = prune_module(net, (batch_of(spec),), validate=False)
    assert_same_function(net, result.module, batch_of(spec), tolerance=TIGHT)
    assert result.plan.exact


def test_a_slice_that_takes_no_channel_ties_nothing(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", ["n", 3, 6, 6]), 3, 8, silent=(1, 5))
    halves = net.op("Reshape", x, net.const(np.array([0, 2, 4, 6, 6])))
    nothing = net.op("Slice", halves, *(net.const(np.array([number])) for number in (0, 0, 1)))
    whole = net.op("Reshape", net.op("Concat", halves, nothing, axis=1), net.const(np.array([0, 8, 6, 6])))
    net.output(net.conv(whole, 8, 3))
    assert_pruned_agrees(net.model(), tmp_path)
