"""Run a module on shapes alone: a dispatch mode that computes everything on the meta device.

Owns the conversion of real tensors (parameters, buffers, constants) to their meta twins, so that a module
can be run as it is, without copying it or touching its parameters. It does what torch's FakeTensorMode does
for us, at about a quarter of the time per op, and without device propagation, which shapes do not need. What is known
of an op without asking torch is in shortcuts.py.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunec.frontends.fx.running.shortcuts import IMMATERIAL, SHORTCUTS


class MetaMode(TorchDispatchMode):
    """Every op under this mode runs on meta tensors, whatever it was given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's dispatch modes are untyped
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}
        self._schemas: dict[Any, tuple[bool, bool]] = {}

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

    def has_twin(self, tensor: Tensor) -> bool:
        """Tell whether a tensor's twin is known: then asking for it makes no tensor."""
        return id(tensor) in self._twins

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one op on the meta device."""
        with torch._C.DisableTorchFunction():  # who watches calls need not be told of each look at a tensor
            args = [self._on_meta(arg) for arg in args]
            rule = SHORTCUTS.get(func) if IMMATERIAL.issuperset(kwargs) else None
            result = rule(args) if rule is not None else None
            if result is not None:
                return result
            kwargs = {name: self._on_meta(value) for name, value in kwargs.items()}
        if func not in self._schemas:
            self._schemas[func] = (_takes_device(func), _makes_tensors(func))
        takes_device, makes_tensors = self._schemas[func]
        if takes_device and (makes_tensors or kwargs.get("device") is not None):
            kwargs = {**kwargs, "device": torch.device("meta"), "pin_memory": None}
        return func(*args, **kwargs)

    def _on_meta(self, value: Any) -> Any:
        """Return an argument of an op with the twins of its tensors; they come alone or in a list."""
        if isinstance(value, Tensor):
            return self.twin(value)
        if isinstance(value, list | tuple):
            return [self.twin(item) if isinstance(item, Tensor) else item for item in value]
        return value

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
