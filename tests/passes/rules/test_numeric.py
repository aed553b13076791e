"""The numbers of elementwise ops, against what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs.tiny import NAN
from torch import Tensor

from prunec.ir.ops import BINARY, UNARY
from prunec.passes.rules import numeric

TORCH_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x, "leaky_relu": F.leaky_relu, "hard_sigmoid": F.hardsigmoid, "log_sigmoid": F.logsigmoid,
    "hard_tanh": F.hardtanh, "hard_swish": F.hardswish, "hard_shrink": F.hardshrink, "soft_shrink": F.softshrink,
    "tanh_shrink": F.tanhshrink, "threshold": lambda x: F.threshold(x, 0, 0), "clip": lambda x: x,
    "thresholded_relu": lambda x: F.threshold(x, 1, 0), "not": torch.logical_not, "is_nan": torch.isnan,
    "is_inf": torch.isinf, "cast": lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_unary_functions_agree_with_torch_at_their_defaults(op: str) -> None:
    x = torch.cat([torch.linspace(-8, 8, 161, dtype=torch.float64), torch.tensor([0.0, -0.5, 0.5, 1.5, 2.5, 1e-9])])
    function = TORCH_UNARY.get(op) or getattr(F, op, None) or getattr(torch, op)
    expected = function(x.double()).double().numpy()
    with np.errstate(all="ignore"):
        found, unknown = numeric.unary(op, x.numpy(), {}), numeric.unary(op, np.array(NAN), {})
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.isnan(unknown)


@pytest.mark.parametrize(
    ("op", "attrs", "function"),
    [
        ("leaky_relu", {"alpha": 0.3}, lambda x: F.leaky_relu(x, 0.3)),
        ("elu", {"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
        ("celu", {"alpha": 0.7}, lambda x: F.celu(x, 0.7)),
        ("gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
        ("gelu", {"approximate": "sigmoid"}, lambda x: x * torch.sigmoid(1.702 * x)),
        ("hard_sigmoid", {"alpha": 0.2, "beta": 0.4}, lambda x: (0.2 * x + 0.4).clamp(0, 1)),
        ("softplus", {"beta": 2.0, "threshold": 5.0}, lambda x: F.softplus(x, 2, 5)),
        ("hard_shrink", {"lambd": 1.0}, lambda x: F.hardshrink(x, 1.0)),
        ("soft_shrink", {"lambd": 1.0}, lambda x: F.softshrink(x, 1.0)),
        ("threshold", {"threshold": 1.0, "value": 7.0}, lambda x: F.threshold(x, 1.0, 7.0)),
        ("silu", {"alpha": 2.0}, lambda x: x * torch.sigmoid(2 * x)),
        ("hard_tanh", {"min": -2.0, "max": 3.0}, lambda x: F.hardtanh(x, -2.0, 3.0)),
        ("clip", {"min": -2.0, "max": None}, lambda x: x.clamp(min=-2.0)),
        ("clip", {"max": 0.5}, lambda x: x.clamp(max=0.5)),
    ],
)
def test_unary_attributes_mean_what_torch_means(
    op: str, attrs: dict[str, Any], function: Callable[[Tensor], Tensor]
) -> None:
    x = torch.linspace(-8, 8, 161, dtype=torch.float64)
    np.testing.assert_allclose(numeric.unary(op, x.numpy(), attrs), function(x).numpy(), rtol=1e-9, atol=1e-12)


TORCH_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rsub": torch.rsub, "floor_div": torch.floor_divide, "mod": torch.remainder, "equal": torch.eq,
    "not_equal": torch.ne,
    "less_equal": torch.le, "greater_equal": torch.ge, "and": torch.logical_and, "or": torch.logical_or,
    "xor": torch.logical_xor, "bit_shift": lambda a, b: a * 2**b,
}  # fmt: skip


@pytest.mark.parametrize("op", BINARY)
def test_binary_functions_agree_with_torch(op: str) -> None:
    values = torch.tensor([-3.0, -1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    a, b = values[:, None], values[None, :]
    function = TORCH_BINARY.get(op) or getattr(torch, op)
    with np.errstate(all="ignore"):
        found = numeric.binary(op, a.numpy(), b.numpy(), {})
    expected = function(a, b).double().numpy()
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], np.broadcast_to(expected, found.shape)[finite], rtol=1e-12)
    assert not np.isfinite(found[~finite]).any()


def test_fmod_takes_the_sign_of_the_dividend() -> None:
    assert float(numeric.binary("mod", np.array(-7.0), np.array(3.0), {})) == 2
    assert float(numeric.binary("mod", np.array(-7.0), np.array(3.0), {"fmod": 1})) == -1
