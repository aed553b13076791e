"""Run a module on shapes alone: a dispatch mode that computes everything on the meta device.

Owns the conversion of real tensors (parameters, buffers, constants) to their meta twins, so that a module
can be run as it is, without copying it or touching its parameters. It does what torch's FakeTensorMode does
for us, at about a quarter of the time per op, and without device propagation, which shapes do not need.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class MetaMode(TorchDispatchMode):
    """Every op under this mode runs on meta tensors, whatever it was given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's dispatch modes are untyped
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}

    def twin(self, tensor: Tensor) -> Tensor:
        """Return the meta twin of a tensor (itself if it is one); the same tensor has the same twin."""
        if tensor.device.type == "meta":
            return tensor
        known = self._twins.get(id(tensor))
        if known is None:
            # The tensor is kept with its twin: an id is only unique while its object lives.
            known = (tensor, torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"))
            self._twins[id(tensor)] = known
        return known[1]

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one op on the meta device."""
        rule = _SHORTCUTS.get(func)
        result = (
            rule([self.twin(arg) if isinstance(arg, Tensor) else arg for arg in args]) if rule is not None else None
        )
        if result is not None:
            return result
        args, kwargs = pytree.tree_map_only(Tensor, self.twin, (args, kwargs))
        if kwargs.get("device") is not None or _makes_tensors(func):
            kwargs = {**kwargs, "device": torch.device("meta"), "pin_memory": None} if _takes_device(func) else kwargs
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(func, args, kwargs or {})


@contextlib.contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Run under torch's fake tensors: some kernels (LSTM) want their parameters where their input is.

    torch logs every op that fails there, with its traceback. A failure is an answer here, so it stays quiet.
    """
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        log.setLevel(level)


def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


def _makes_tensors(func: Any) -> bool:
    """Tell whether an op has no tensor among its arguments (zeros, arange …)."""
    return not any("Tensor" in str(argument.type) for argument in func._schema.arguments)


def _like_first(args: Sequence[Any]) -> Any:
    """An elementwise op on floats: the result is laid out as the operand is."""
    return torch.empty_like(args[0]) if args[0].is_floating_point() else None


def _first(args: Sequence[Any]) -> Any:
    """The same in place."""
    return args[0] if args[0].is_floating_point() else None


def _batch_norm(args: Sequence[Any]) -> Any:
    """Evaluation with the statistics of the network, all in the precision in which torch computes."""
    x, _, _, mean, var, training, *_ = args
    computed = torch.float64 if x.dtype == torch.float64 else torch.float32
    if training or mean is None or var is None or not mean.dtype == var.dtype == computed:
        return None
    return torch.empty_like(x), torch.empty_like(mean), torch.empty_like(var)


_ELEMENTWISE = ("relu", "hardtanh", "hardswish", "hardsigmoid", "mish", "silu", "elu", "leaky_relu", "gelu", "sigmoid",
                "tanh")  # fmt: skip
_SHORTCUTS: Mapping[Any, Callable[[Sequence[Any]], Any]] = MappingProxyType(
    {
        **{getattr(torch.ops.aten, name).default: _like_first for name in _ELEMENTWISE},
        **{getattr(torch.ops.aten, f"{name}_").default: _first for name in _ELEMENTWISE},
        torch.ops.aten.native_batch_norm.default: _batch_norm,
    }
)
"""Ops that torch computes on the meta device by many smaller ones in Python, at milliseconds a call: what comes out of
them, from tensors on the meta device; None where it is not plain, and torch is asked after all."""
