"""Shared checks: each is named assert_… and raises; work that must end in time, and numbers to compare."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

TIGHT = 1e-9
"""Relative error allowed in float64."""


def outputs_of(net: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Return the output tensors of a network, in order, without gradients."""
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(net(*inputs)) if isinstance(leaf, Tensor)]


def relative_error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference over an output's largest magnitude, the worst of all outputs."""
    assert len(expected) == len(found)
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape, f"{tuple(a.shape)} became {tuple(b.shape)}"
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) if a.numel() else 0.0)
    return worst


def assert_same_function(original: nn.Module, pruned: nn.Module, *batches: Tensor, tolerance: float = 1e-5) -> None:
    """Both networks agree on every batch, and the original's output is not vacuous."""
    for batch in batches:
        expected = outputs_of(original, batch.clone())
        error = relative_error(expected, outputs_of(pruned, batch.clone()))
        assert error <= tolerance, f"outputs differ by {error:.2e} on an input of {tuple(batch.shape)}"


def parameter_elements(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def contraction_macs(module: nn.Module, batch: Tensor) -> int:
    """Count the multiply-accumulates of one sample by hooks on convolutions and linear layers."""
    total = 0

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        weight: Any = layer.weight
        if isinstance(layer, nn.Linear):
            total += out.numel() * weight.shape[1]
        elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
            total += weight.numel() * args[0].shape[0] * int(torch.tensor(args[0].shape[2:]).prod())
        else:
            total += weight.numel() * out.shape[0] * int(torch.tensor(out.shape[2:]).prod())

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            module(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return total // batch.shape[0]


def assert_same_on_inputs(original: nn.Module, pruned: nn.Module, *inputs: Tensor, tolerance: float = 1e-5) -> None:
    expected = outputs_of(original, *[i.clone() for i in inputs])
    error = relative_error(expected, outputs_of(pruned, *[i.clone() for i in inputs]))
    assert error <= tolerance, f"outputs differ by {error:.2e} on {[tuple(i.shape) for i in inputs]}"


@contextmanager
def in_time(seconds: int = 60) -> Iterator[None]:
    """Raise TimeoutError where the work does not end."""

    def out_of_time(*_: Any) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGVTALRM, out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # of processor time: other work on the machine does not count
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
