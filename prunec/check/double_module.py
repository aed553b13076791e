"""A torch module in double precision, without touching it.

Owns the mode under which every float that a forward reads, makes or asks for is a double. Only tensors are copied, so
modules that cannot be deep-copied, and those that name a dtype in their forward, run too. Writes into
the module's tensors go to the doubles of this run. Used by referee.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_WIDE: Mapping[torch.dtype, torch.dtype] = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
_NARROWING = (Tensor.float, Tensor.half, Tensor.bfloat16)


class InDouble(TorchFunctionMode):
    """Within this mode torch computes in double, whatever the dtype of its inputs.

    Args:
        stored: tensors that a forward reads and may write: each gets a double of its own, ints a copy.
        nudged: whether the doubles differ from the tensors in their last bits, at random.
    """

    def __init__(self, stored: Iterable[Tensor] = (), *, nudged: bool = False) -> None:
        super().__init__()
        self._doubles: dict[int, tuple[Tensor, Tensor]] = {}
        draw = torch.Generator().manual_seed(0)
        for tensor in stored:
            double = tensor.detach().to(_WIDE.get(tensor.dtype, tensor.dtype), copy=True)
            if nudged and tensor.is_floating_point():
                signs = torch.randint(0, 2, tensor.shape, generator=draw).mul_(2).sub_(1).to(double)
                double *= 1 + torch.finfo(tensor.dtype).eps * signs
            self._doubles[id(tensor)] = tensor, double

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.data.__set__:  # type: ignore[attr-defined]
            self._doubles[id(args[0])] = args[0], self._wide(args[1])
            return None
        if func in _NARROWING:
            return self._wide(args[0]).to(torch.float64)
        result = func(*tree_map(self._wide, args), **tree_map(self._wide, kwargs or {}))
        return tree_map(_widened, result)

    def _wide(self, value: Any) -> Any:
        """Return what stands for an argument: a tensor's double, a wider dtype, or the argument itself."""
        if isinstance(value, torch.dtype):
            return _WIDE.get(value, value)
        if not isinstance(value, Tensor):
            return value
        known = self._doubles.get(id(value))
        if known is None and value.dtype in _WIDE:
            # A tensor that the forward found somewhere. It is held, or its id could go to another.
            known = self._doubles[id(value)] = value, value.detach().to(_WIDE[value.dtype])
        return value if known is None else known[1]


def _widened(value: Any) -> Any:
    """Return a result in double, since functions that make tensors choose a dtype of their own."""
    return value.to(_WIDE[value.dtype]) if isinstance(value, Tensor) and value.dtype in _WIDE else value


def stored_tensors(module: torch.nn.Module) -> list[Tensor]:
    """Return a module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]
