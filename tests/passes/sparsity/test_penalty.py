"""λ: the paper's formula, worked out by hand on its own ConvNet and on a small chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modules.training import Chain, ResidualConcat

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


def test_pinned_classes_cost_nothing() -> None:
    found = penalty_by_gamma(build("convnet"), *ARCHITECTURES["convnet"].example_inputs())
    assert (found["bn2.weight"] == 0).all()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(BadInput, match="no penalty called 'flops'"):
        penalty_by_gamma(Chain(), torch.zeros(2, 3, 8, 8), "flops")
