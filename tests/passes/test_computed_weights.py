"""Random networks whose weights are computed: weight norms over any dim, PyTorch's masks, sums of parameters."""

from __future__ import annotations

import random

import numpy as np
import torch
from assertions import TIGHT, assert_same_function, parameter_elements
from hypothesis import given, note, settings
from hypothesis import strategies as st
from masking import error_of_a_plan
from modules.strategies import IN_CHANNELS, SIZE, Spec, StandardisedConv, build, specs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import l1_unstructured, ln_structured

from prunec.api import prune_module
from prunec.ir.plan import PrunePlan
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module


class Sum(nn.Module):
    """A second parameter that is added to the weight; its columns are those of the weight."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.randn_like(like) / 5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.other


def compute_weights(net: nn.Module, seed: int) -> nn.Module:
    """Return the network, most of its layers with weights that are computed; zero filters stay zero."""
    draw = random.Random(seed)
    for part in list(net.modules()):
        if isinstance(part, StandardisedConv) or not isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        zero = any((part.weight == 0).flatten(1).all(1).tolist())
        kind = draw.choice(["mask", "rows", ""] if zero else ["norm", "norm", "mask", "rows", "sum", ""])
        if kind == "norm":
            parametrizations.weight_norm(part, dim=draw.choice([0, 0, 1, None]))
        elif kind == "mask":
            l1_unstructured(part, "weight", draw.choice([0.2, 0.5]))
        elif kind == "rows":
            ln_structured(part, "weight", 0.3, n=2, dim=draw.choice([0, 1]))
        elif kind == "sum":
            parametrize.register_parametrization(part, "weight", Sum(part.weight))
    return net.double().eval()


def _batch(spec: Spec, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(spec.seed)
    return torch.randn(2, IN_CHANNELS, size, size, generator=generator, dtype=torch.float64)


@given(specs(), st.sampled_from([0.3, 0.6, 0.95]))
@settings(max_examples=40, deadline=None)
def test_exact_removal_computes_the_same_function(spec: Spec, zeros: float) -> None:
    net = compute_weights(build(spec, zeros), spec.seed)
    result = prune_module(net, (_batch(spec),), validate=False)
    note(f"{spec}\nremoved {result.report.removed_channels}")
    batches = [_batch(spec)] + ([_batch(spec, 16)] if net.any_size else [])
    assert_same_function(net, result.module, *batches, tolerance=TIGHT)
    assert result.plan.exact
    assert result.report.after.params == parameter_elements(result.module)
    again = apply_plan(net, PrunePlan.from_json(result.plan.to_json()))
    assert_same_function(net, again, batches[0], tolerance=TIGHT)


@given(specs(), st.sampled_from([0.0, 0.5]), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_any_plan_equals_the_masked_network(spec: Spec, zeros: float, seed: int) -> None:
    net, batch = compute_weights(build(spec, zeros), spec.seed), _batch(spec)
    traced = read_module(net, (batch,))
    facts = gather_facts(traced.graph)
    error, removed = error_of_a_plan(traced, facts, batch, seed)
    note(f"{spec}\nremoved {removed} classes")
    assert error <= TIGHT


def test_masks_of_a_carriers_column_let_through_what_it_takes_over() -> None:
    torch.manual_seed(0)
    conv = l1_unstructured(nn.Conv2d(4, 3, 3, padding=1), "weight", 0.5)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), conv).double().eval()
    with torch.no_grad():
        net[0].weight[1:] = 0
        net[0].bias[1:] = torch.tensor([1.0, 2.0, 3.0])
    result = prune_module(net, (torch.randn(1, 3, 6, 6, dtype=torch.float64),), validate=False)
    masks = dict(result.module.named_buffers())["2.weight_mask"].numpy()
    assert masks.shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(masks[:, 1], 1)
    assert_same_function(net, result.module, torch.randn(2, 3, 7, 9, dtype=torch.float64), tolerance=TIGHT)
