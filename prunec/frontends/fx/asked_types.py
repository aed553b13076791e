"""Forwards that ask ``type(x)``: what stands for a tensor while a network is read passes ``isinstance``, not this.

Such a forward may be followed on a way that it never takes. Owns the question whether one asks so, by the names in its
code, and the comparison of what it computes with what was read, in numbers, which other networks are spared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from prunec.errors import UntraceableModel
from prunec.frontends.fx.running.arguments import with_tensors
from prunec.frontends.fx.running.containers import tensors_in

_ENOUGH = 1e-3
"""A relative difference that is no rounding: another way through a forward makes a larger one."""


def asks_types(module: nn.Module) -> bool:
    """Tell whether a method of the user's own modules has a ``type(...)`` in it, or a tensor's ``.type``."""
    kinds = {type(sub) for sub in module.modules()}
    own = {base for kind in kinds for base in kind.__mro__ if base.__module__.partition(".")[0] != "torch"}
    methods = (method for base in own for name, method in vars(base).items() if not name.startswith("__"))
    return any("type" in code.co_names for code in _codes(methods))


def _codes(values: Iterable[Any]) -> Iterator[CodeType]:
    """Yield the code of functions, and of functions inside of them."""
    for value in values:
        code = value if isinstance(value, CodeType) else getattr(value, "__code__", None)
        if isinstance(code, CodeType):
            yield code
            yield from _codes(each for each in code.co_consts if isinstance(each, CodeType))


@torch.no_grad()
def computes_the_same(module: nn.Module, read: nn.Module, inputs: Sequence[Any]) -> bool:
    """Tell whether a network and what was read of it compute the same; a network that is random is taken at its word.

    Args:
        module: in eval mode; whoever calls puts back what it changes.
        read: the traced network, with the same tensors.
        inputs: positional arguments; random numbers take the place of floats.
    """
    given = with_tensors(inputs, lambda _, like: torch.randn_like(like) if like.is_floating_point() else like)
    wanted, again, found = (tensors_in(each(*given)) for each in (module, module, read))
    return not _close(wanted, again) or _close(wanted, found)


def _close(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    def same(a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape or not a.is_floating_point():
            return a.shape == b.shape and torch.equal(a, b)
        scale = float(a.double().abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
        return torch.allclose(a.double(), b.double(), rtol=0, atol=_ENOUGH * scale, equal_nan=True)

    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def refusal() -> UntraceableModel:
    """Return the error of a network that takes another way when it is read."""
    return UntraceableModel(
        "the forward asks what type(x) is, and computes something else when prunec reads it",
        why="what stands for a tensor meanwhile is of another type",
        do="ask isinstance(x, torch.Tensor) instead",
    )
