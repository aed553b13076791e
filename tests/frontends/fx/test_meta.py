"""Running on shapes alone: what is known without asking torch is what torch says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunec.frontends.fx.running.meta import MetaMode
from prunec.frontends.fx.running.shortcuts import SHORTCUTS

LAYOUTS: dict[str, Tensor] = {
    "float": torch.empty(2, 8, 4, 6, device="meta"),
    "half": torch.empty(2, 8, 4, 6, device="meta", dtype=torch.float16),
    "double": torch.empty(2, 8, 4, 6, device="meta", dtype=torch.float64),
    "channels last": torch.empty(2, 8, 4, 6, device="meta").to(memory_format=torch.channels_last),
    "strided": torch.empty(2, 8, 4, 12, device="meta").transpose(1, 2)[..., ::2].transpose(1, 2),
    "expanded": torch.empty(1, 8, 4, 6, device="meta").expand(3, 8, 4, 6),
    "vectors": torch.empty(5, 8, device="meta"),
    "tokens": torch.empty(2, 5, 8, device="meta"),
    "one pixel": torch.empty(2, 8, 1, 1, device="meta"),
    "one row": torch.empty(2, 8, 1, 6, device="meta"),
}


def described(result: Any) -> list[tuple[Any, ...]]:
    tensors = [result] if isinstance(result, Tensor) else list(result)
    return [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type) for tensor in tensors]


def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def vector_of(size: int, like: Tensor) -> Tensor:
    return meta(size, dtype=like.dtype)


ATEN = torch.ops.aten


def calls(func: Any, x: Tensor) -> list[tuple[Any, ...]]:
    """Return arguments to call an op with, of which the first tensor is ``x``."""
    vector = vector_of(8, x)
    if func is ATEN.native_batch_norm.default:
        own = meta(8, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        trained = [(x, None, None), (x, own, own), (x, own, None)]
        return [
            (x, own, own, own, own, False, 0.1, 1e-5),
            *((*given, None, None, True, 0.1, 1e-5) for given in trained),
            (x, own, own, own, own, True, 0.1, 1e-5),
        ]
    if func in (ATEN.add.Tensor, ATEN.sub.Tensor, ATEN.mul.Tensor, ATEN.div.Tensor):
        others = [x, x.clone(), x[:1], x[..., :1], x[0], vector_of(x.shape[-1], x), 2, 0.5, x.double(), x.unsqueeze(0)]
        return [(x, other) for other in [*others, x.transpose(0, -1).contiguous().transpose(0, -1)]]
    if func is ATEN.mul.Scalar:
        return [(x, 2), (x, 0.5)]
    if func is ATEN._safe_softmax.default:
        return [(x, -1), (x, 1), (x, 9), (x, 0, torch.float64)]
    if func is ATEN.convolution.default and x.dim() == 4:
        kernels = [(6, 8, 3, 3, 1), (8, 1, 3, 3, 8), (4, 4, 1, 1, 2), (6, 8, 2, 3, 1)]
        ways = [([1, 1], [0, 0], [1, 1]), ([2, 1], [1, 2], [1, 1]), ([2], [1], [1]), ([1, 2], [2, 2], [2, 1])]
        layers = [(meta(*sizes, dtype=x.dtype), groups) for *sizes, groups in kernels]
        return [
            (x, weight, bias, *way, False, [0, 0], groups)
            for weight, groups in layers
            for way in ways
            for bias in (None, vector_of(weight.shape[0], x))
        ]
    if func is ATEN.addmm.default and x.dim() == 2:
        return [(vector_of(3, x), x, meta(8, 3, dtype=x.dtype)), (vector_of(3, x), x, meta(3, 8, dtype=x.dtype).t())]
    if func is ATEN.cat.default:
        return [([x, x], 1), ([x, x[:, :3]], -x.dim() + 1), ([x],), ([x, x.contiguous()], 0), ([x, x.double()], 1)]
    if func is ATEN.native_layer_norm.default:
        tails = [list(x.shape[-1:]), list(x.shape[1:])]
        weights = [None, *(meta(*tail, dtype=x.dtype) for tail in tails)]
        return [(x, list(weight.shape), weight, weight, 1e-5) for weight in weights[1:]] + [
            (x, tails[0], None, None, 0.1)
        ]
    if func is ATEN.native_group_norm.default and x.dim() == 4:
        sizes = (x.shape[0], 8, x.shape[2] * x.shape[3])
        return [(x, vector, vector, *sizes, 4, 1e-5), (x, None, None, *sizes, 1, 1e-5)]
    if func is ATEN.mean.dim:
        axes: list[list[int] | None] = [[-1], [0], [1, -1], [-1, -2], [0, 1], [1, 1], [7], [], None]
        return [(x, each, *keep) for each in axes for keep in ([], [True], [False])]
    if func is ATEN.upsample_bilinear2d.default and x.dim() == 4:
        return [(x, [8, 12], False), (x, [3, 3], True, 0.5, 0.5)]
    takes_one = len([a for a in func._schema.arguments if not a.has_default_value() and not a.kwarg_only]) == 1
    return [(x,)] if takes_one else []


def outcome(run: Any, args: tuple[Any, ...]) -> Any:
    try:
        return described(run(*args))
    except (RuntimeError, ValueError, IndexError) as error:
        return type(error).__name__


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("func", SHORTCUTS, ids=str)
def test_a_shortcut_gives_what_torch_gives(func: Any, layout: str) -> None:
    x = LAYOUTS[layout]
    if layout == "expanded" and func._schema.is_mutable:
        pytest.skip("torch does not write into expanded tensors")
    for args in calls(func, x):
        mode = MetaMode()
        assert outcome(lambda *given: mode.compute(func, given, {}), args) == outcome(func, args), args  # noqa: B023  # called at once


@pytest.mark.parametrize("func", SHORTCUTS, ids=str)
def test_a_shortcut_is_taken_on_plain_operands(func: Any) -> None:
    assert any(SHORTCUTS[func](args) is not None for x in LAYOUTS.values() for args in calls(func, x))


def test_a_convolution_that_does_not_fit_is_asked_of_torch() -> None:
    weight = meta(4, 6, 3, 3)
    with pytest.raises(RuntimeError, match="channel"):
        MetaMode().compute(ATEN.convolution.default, (meta(1, 8, 4, 4), weight, None, [1], [0], [1], False, [0], 1), {})


def test_what_is_not_plain_is_asked_of_torch() -> None:
    integers, vector = torch.ones(2, 8, dtype=torch.int64), torch.empty(8)
    sigmoid, norm = torch.ops.aten.sigmoid.default, torch.ops.aten.native_batch_norm.default
    assert MetaMode().compute(sigmoid, (integers,), {}).dtype == torch.float32
    trained = MetaMode().compute(norm, (torch.empty(4, 8), vector, vector, vector, vector, True, 0.1, 1e-5), {})
    assert [tuple(tensor.shape) for tensor in trained] == [(4, 8), (8,), (8,)]


def test_an_op_in_place_returns_its_operand() -> None:
    x = torch.empty(2, 8, device="meta")
    assert MetaMode().compute(torch.ops.aten.relu_.default, (x,), {}) is x
