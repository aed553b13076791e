"""The exponential moving average of a network, which is used to report accuracy.

Owns ``Ema``. Buffers (BatchNorm statistics) are averaged along with the parameters, so that both belong to the same
steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import nn


class EmaState(TypedDict):
    """The saved state of an ``Ema``."""

    num_updates: int
    average: list[torch.Tensor]


class Ema:
    """Averages a module's floating-point parameters and buffers; integers are copied.

    The decay rises to its value as min(decay, (1 + n) / (10 + n)) after n updates, so that the useless first
    weights are soon forgotten (the usual zero-debias of moving averages).

    Args:
        module: whose values to follow. They must stay on one device.
        decay: weight of the past, in [0, 1); 0 keeps a plain copy of the last update.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._live = _values(module)
        self._average = [value.detach().clone() for value in self._live]
        self._floats = self._pairs(floats=True)
        self._counters = self._pairs(floats=False)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's present values."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(*self._floats, 1 - decay)
        if self._counters[0]:
            torch._foreach_copy_(*self._counters)

    def _pairs(self, *, floats: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the averages that are numbers or counters, and the values that they follow."""
        pairs = zip(self._average, self._live, strict=True)
        chosen = [(average, value) for average, value in pairs if average.is_floating_point() == floats]
        return [average for average, _ in chosen], [value for _, value in chosen]

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the module the averaged values within a ``with`` block."""
        live = [value.detach().clone() for value in self._live]
        self.copy_to_module()
        try:
            yield
        finally:
            _copy(self._live, live)

    def copy_to_module(self) -> None:
        """Give the module the averaged values permanently."""
        _copy(self._live, self._average)

    def state_dict(self) -> EmaState:
        """Return what ``load_state_dict`` takes; the tensors are not copied."""
        return {"num_updates": self.num_updates, "average": list(self._average)}

    def load_state_dict(self, state: EmaState) -> None:
        """Go on from a saved state of the same module."""
        _copy(self._average, state["average"])
        self.num_updates = state["num_updates"]


def _values(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


@torch.no_grad()
def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
