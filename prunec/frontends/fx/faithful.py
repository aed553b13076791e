"""Whether what was read of a network computes what the network does.

A forward that asks what its values are (``type(x)``, ``x.__class__``, a ``match``, a function for each type) may be
followed on a way that it never takes, since proxies stand for tensors meanwhile. Owns the comparison in numbers, on one
batch; that of a pruned network with the original is prunec/check/'s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunec.errors import UntraceableModel
from prunec.frontends.fx.running.arguments import with_tensors
from prunec.frontends.fx.running.containers import tensors_in
from prunec.frontends.fx.running.untouched import eval_mode, untouched
from prunec.frontends.fx.traced import Traced

_LOG = logging.getLogger("prunec")
_ENOUGH = 1e-2
"""A relative difference that is no rounding, in half precision neither: another way through a forward makes more."""


def refuse_another(module: nn.Module, traced: Traced, inputs: Sequence[Any]) -> None:
    """Run a network and what was read of it, and compare; a network that is random is taken at its word.

    Args:
        module: left as it is.
        inputs: positional arguments; random numbers take the place of floats.

    Raises:
        UntraceableModel: they compute something else.
    """
    if any(tensor.is_meta for tensor in traced.parameters.values()):
        return
    generator = torch.Generator().manual_seed(0)
    given = with_tensors(inputs, lambda _, like: _random(like, generator) if like.is_floating_point() else like)

    def run(network: nn.Module) -> list[Tensor]:
        with untouched(network, given), eval_mode(network), torch.no_grad():
            return [tensor.clone() for tensor in tensors_in(network(*given))]

    try:
        wanted = run(module)
        same = _close(wanted, run(traced.module)) or not _close(wanted, run(module))
    except Exception as error:  # noqa: BLE001  # a forward that does not bear random numbers; the check says more
        _LOG.debug("what was read cannot be compared: %s", error)
        return
    if not same:
        raise UntraceableModel(
            "what prunec read of the network computes something else than the network",
            why="its forward may ask what a value is, type(x) or the like, and what stands for it meanwhile is another",
            do="ask isinstance(x, torch.Tensor), take the question out of the forward, or give the network as an ONNX "
            "file",
        )


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def _close(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    def same(a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape or not a.is_floating_point():
            return a.shape == b.shape and torch.equal(a, b)
        scale = float(a.double().abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
        return torch.allclose(a.double(), b.double(), rtol=0, atol=_ENOUGH * scale, equal_nan=True)

    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
