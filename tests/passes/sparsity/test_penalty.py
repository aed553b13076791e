"""λ: the paper's formula, worked out by hand on its own ConvNet and on a small chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modules.training import Chain, Inverted, ResidualConcat

from prunec.errors import BadInput
from prunec.frontends.fx.frontend import trace
from prunec.models import ARCHITECTURES, build
from prunec.passes.channels import channels
from prunec.passes.sparsity.gammas import gammas
from prunec.passes.sparsity.penalty import PENALTIES, penalty


def penalty_by_gamma(module: torch.nn.Module, image: torch.Tensor, kind: str = "memory") -> dict[str, np.ndarray]:
    graph = trace(module, (image,)).graph
    classes = channels(graph)
    values = penalty(graph, classes, kind)  # type: ignore[arg-type]  # a test passes names
    return {gamma.param: values[gamma.classes] for gamma in gammas(graph, classes)}


def test_memory_penalty_of_the_papers_convnet() -> None:
    found = penalty_by_gamma(build("convnet"), *ARCHITECTURES["convnet"].example_inputs())
    pixels = 32 * 32
    by_hand = {
        "features.1.weight": (5 * 5 * 3 + 5 * 5 * 192 + 32 * 32) / pixels,
        "features.5.weight": (5 * 5 * 96 + 3 * 3 * 192 + 16 * 16) / pixels,
        "features.9.weight": (3 * 3 * 192 + 4 * 4 * 384 + 8 * 8) / pixels,
        "bn1.weight": (4 * 4 * 192 + 1 * 1 * 10 + 1) / pixels,
    }
    for name, value in by_hand.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


def test_memory_penalty_of_a_chain_that_ends_in_a_flattened_linear_layer() -> None:
    found = penalty_by_gamma(Chain(), torch.zeros(2, 3, 8, 8))
    np.testing.assert_allclose(found["first.1.weight"], (9 * 3 + 9 * 6 + 64) / 64)
    np.testing.assert_allclose(found["second.1.weight"], (9 * 4 + 16 * 2 + 16) / 64)


def test_a_residual_class_pays_for_all_its_layers() -> None:
    found = penalty_by_gamma(ResidualConcat(), torch.zeros(2, 3, 8, 8))
    weights = 9 * 3 + 9 * 8 + 9 * 8 + 9 * 6 + 4  # stem and outer make it; inner, left and right read it
    np.testing.assert_allclose(found["stem.1.weight"], (weights + 2 * 64) / 64)
    np.testing.assert_array_equal(found["stem.1.weight"], found["outer.1.weight"])


def test_the_batch_of_the_example_does_not_matter() -> None:
    two, five = (penalty_by_gamma(Chain(), torch.zeros(n, 3, 8, 8)) for n in (2, 5))
    for name in two:
        np.testing.assert_array_equal(two[name], five[name])


@pytest.mark.parametrize("kind", PENALTIES)
def test_kinds_have_the_same_mean_so_that_rho_keeps_its_scale(kind: str) -> None:
    graph = trace(ResidualConcat(), (torch.zeros(2, 3, 8, 8),)).graph
    classes = channels(graph)
    memory, other = penalty(graph, classes), penalty(graph, classes, kind)  # type: ignore[arg-type]  # a parameter
    assert other.sum() == pytest.approx(memory.sum())


def test_uniform_is_uniform_and_macs_follows_the_larger_map() -> None:
    image = torch.zeros(2, 3, 8, 8)
    assert len({value for values in penalty_by_gamma(Chain(), image, "uniform").values() for value in values}) == 1
    macs = penalty_by_gamma(Chain(), image, "macs")
    first, second = 9 * 3 * 64 + 9 * 6 * 16, 9 * 4 * 16 + 16 * 2
    assert macs["first.1.weight"][0] / macs["second.1.weight"][0] == pytest.approx(first / second)


def test_latency_weighs_macs_with_the_time_they_take() -> None:
    graph = trace(Chain(), (torch.zeros(2, 3, 8, 8),)).graph
    classes = channels(graph)
    rates = {"first_0": (2.0, 3.0), "second_0": (5.0, 7.0), "head": (11.0, 13.0)}
    values = penalty(graph, classes, "latency", rates)
    first, second = (values[gamma.classes] for gamma in gammas(graph, classes))
    # What makes a channel, at the rate of channels made, and what reads it, at that of channels read.
    by_hand = 2 * 9 * 3 * 64 + 7 * 9 * 6 * 16, 5 * 9 * 4 * 16 + 13 * 16 * 2
    np.testing.assert_allclose(first / second[0], by_hand[0] / by_hand[1])
    assert values.sum() == pytest.approx(penalty(graph, classes).sum())


def test_a_layer_without_a_rate_has_the_median_of_the_others() -> None:
    graph = trace(ResidualConcat(), (torch.zeros(2, 3, 8, 8),)).graph
    classes = channels(graph)
    known = {"stem_0": (1.0, 20.0), "inner_0": (2.0, 30.0), "outer_0": (4.0, 90.0)}
    filled = known | dict.fromkeys(("left_0", "right_0", "head"), (2.0, 30.0))
    np.testing.assert_allclose(
        penalty(graph, classes, "latency", known), penalty(graph, classes, "latency", filled), rtol=1e-12
    )
    assert not np.allclose(penalty(graph, classes, "latency", known), penalty(graph, classes, "macs"))


def test_without_any_rates_latency_is_macs() -> None:
    graph = trace(ResidualConcat(), (torch.zeros(2, 3, 8, 8),)).graph
    classes = channels(graph)
    np.testing.assert_allclose(penalty(graph, classes, "latency"), penalty(graph, classes, "macs"), rtol=1e-12)


def test_a_depthwise_layer_that_is_slow_per_mac_makes_its_channels_dearer() -> None:
    graph = trace(Inverted(), (torch.zeros(2, 3, 8, 8),)).graph
    classes = channels(graph)
    rates = dict.fromkeys(("stem_0", "expand_0", "project_0", "head"), (1.0, 1.0)) | {"depthwise_0": (3.0, 3.0)}
    macs, time = penalty(graph, classes, "macs"), penalty(graph, classes, "latency", rates)
    of = {gamma.param: gamma.classes[0] for gamma in gammas(graph, classes)}
    hidden, stream = of["depthwise.1.weight"], of["project.1.weight"]
    # Per hidden channel 4 MACs in, 9 depthwise and 4 out at each position; a stream's are read and made outside of it.
    grown = (4 + 3 * 9 + 4) / (4 + 9 + 4)
    assert (time[hidden] / time[stream]) / (macs[hidden] / macs[stream]) == pytest.approx(grown)


def test_pinned_classes_cost_nothing() -> None:
    found = penalty_by_gamma(build("convnet"), *ARCHITECTURES["convnet"].example_inputs())
    assert (found["bn2.weight"] == 0).all()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(BadInput, match="no penalty called 'flops'"):
        penalty_by_gamma(Chain(), torch.zeros(2, 3, 8, 8), "flops")
