"""Running on shapes alone: what is known without asking torch is what torch says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunec.frontends.fx.running.meta import _SHORTCUTS, MetaMode

LAYOUTS: dict[str, Tensor] = {
    "float": torch.empty(2, 8, 4, 6, device="meta"),
    "half": torch.empty(2, 8, 4, 6, device="meta", dtype=torch.float16),
    "double": torch.empty(2, 8, 4, 6, device="meta", dtype=torch.float64),
    "channels last": torch.empty(2, 8, 4, 6, device="meta").to(memory_format=torch.channels_last),
    "strided": torch.empty(2, 8, 4, 12, device="meta").transpose(1, 2)[..., ::2].transpose(1, 2),
    "expanded": torch.empty(1, 8, 4, 6, device="meta").expand(3, 8, 4, 6),
    "vectors": torch.empty(5, 8, device="meta"),
}


def described(result: Any) -> list[tuple[Any, ...]]:
    tensors = [result] if isinstance(result, Tensor) else list(result)
    return [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type) for tensor in tensors]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("func", _SHORTCUTS, ids=str)
def test_a_shortcut_gives_what_torch_gives(func: Any, layout: str) -> None:
    x = LAYOUTS[layout]
    if func is torch.ops.aten.native_batch_norm.default:
        own = torch.float64 if x.dtype == torch.float64 else torch.float32
        vector = torch.empty(8, device="meta", dtype=own)
        args: tuple[Any, ...] = (x, vector, vector, vector, vector, False, 0.1, 1e-5)
    elif layout == "expanded" and func._schema.is_mutable:
        pytest.skip("torch does not write into expanded tensors")
    else:
        args = (x,)
    assert described(MetaMode().compute(func, args, {})) == described(func(*args))


def test_what_is_not_plain_is_asked_of_torch() -> None:
    integers, vector = torch.ones(2, 8, dtype=torch.int64), torch.empty(8)
    sigmoid, norm = torch.ops.aten.sigmoid.default, torch.ops.aten.native_batch_norm.default
    assert MetaMode().compute(sigmoid, (integers,), {}).dtype == torch.float32
    trained = MetaMode().compute(norm, (torch.empty(4, 8), vector, vector, vector, vector, True, 0.1, 1e-5), {})
    assert [tuple(tensor.shape) for tensor in trained] == [(4, 8), (8,), (8,)]


def test_an_op_in_place_returns_its_operand() -> None:
    x = torch.empty(2, 8, device="meta")
    assert MetaMode().compute(torch.ops.aten.relu_.default, (x,), {}) is x
