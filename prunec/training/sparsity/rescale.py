"""γ–W rescaling: gamma and beta of the classes to be pruned times α, the weights that read them times 1/α.

Ye, Lu, Lin, Wang, ICLR 2018, section 3.2: a smaller gamma reaches zero in fewer proximal steps, while the
network computes the same. Owns doing it, checking it and undoing it; passes/sparsity/scaling.py finds the
classes that allow it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunec.errors import BadInput, InternalError
from prunec.frontends.fx.running.containers import tensors_in
from prunec.passes.sparsity.scaling import Read, Scaling

TOLERANCE = 1e-4
"""Largest relative change of the outputs that counts as rounding; a wrong factor changes them by far more."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A parameter and where its factor applies: ``power`` (+1 or −1) of α under ``mask``."""

    parameter: torch.Tensor
    mask: torch.Tensor
    power: int


@dataclass(frozen=True, slots=True, eq=False)
class Rescaling:
    """A rescaling of one module by one α.

    A resumed run, whose weights are scaled already, makes it again with ``of`` and only undoes it.
    """

    alpha: float
    parts: tuple[_Part, ...]

    @classmethod
    def of(cls, module: nn.Module, scaling: Scaling, alpha: float) -> Rescaling:
        """Find the parameters that ``scaling`` names, without changing them yet.

        Args:
            module: the module from which the scaling's graph was traced, or one that shares its parameters.
            alpha: > 0; 1 changes nothing.

        Raises:
            BadInput: alpha is not a positive number.
        """
        if not 0 < alpha < float("inf"):
            raise BadInput(f"alpha is {alpha}", why="gammas can only be scaled by a positive number")
        return cls(alpha, _parts(dict(module.named_parameters(remove_duplicate=False)), scaling))

    def apply(self, module: nn.Module, example_inputs: Sequence[Any]) -> None:
        """Scale in place, and check that the function did not change.

        Args:
            module: the module of ``of``.
            example_inputs: of the traced shape; random numbers of that shape are run for the check.

        Raises:
            InternalError: the outputs changed by more than rounding; the module is left as it was.
        """
        probe = _probe(example_inputs)
        before = _outputs(module, probe)
        _multiply(self.parts, self.alpha)
        error = _relative_error(before, _outputs(module, probe))
        if not error <= TOLERANCE:
            self.undo()
            raise InternalError("rescaling", f"scaling by {self.alpha} changed the outputs by {error:.1e} (relative)")

    def undo(self) -> None:
        """Divide by the factors again: zeros stay zeros, and the function stays."""
        _multiply(self.parts, 1 / self.alpha)


def _parts(parameters: Mapping[str, torch.Tensor], scaling: Scaling) -> tuple[_Part, ...]:
    parts: list[_Part] = []
    for gamma in scaling.sources:
        mask = scaling.scaled[gamma.classes] & gamma.decides
        parts.extend(_part(parameters[name], mask, 1) for name in (gamma.param, gamma.beta) if name)
    weights = [(parameters[read.param], read) for read in scaling.reads]
    parts.extend(_part(weight, _weight_mask(read, scaling, weight.dim()), -1) for weight, read in weights)
    return tuple(parts)


def _part(parameter: torch.Tensor, mask: np.ndarray[Any, np.dtype[np.bool_]], power: int) -> _Part:
    return _Part(parameter, torch.from_numpy(mask), power)


def _weight_mask(read: Read, scaling: Scaling, rank: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a mask that broadcasts against the weight, or against its parts [g, C_out/g, …] of a grouped one."""
    mask = scaling.scaled[read.classes]
    if read.conv_groups > 1:
        per_group = mask.reshape(read.conv_groups, -1)
        return per_group.reshape(read.conv_groups, 1, -1, *(1,) * (rank - 2))
    shape = [1] * rank
    shape[read.axis] = mask.size
    return mask.reshape(shape)


@torch.no_grad()
def _multiply(parts: Sequence[_Part], alpha: float) -> None:
    for part in parts:
        factor = torch.where(part.mask, alpha**part.power, 1.0).to(part.parameter)
        values = part.parameter
        if factor.dim() == values.dim() + 1:
            values = values.view(factor.shape[0], -1, *values.shape[1:])
        values.mul_(factor)


def _probe(example_inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return the inputs with random numbers in place of floats: zeros would hide a wrong weight."""
    generator = torch.Generator().manual_seed(0)

    def randomised(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value)
        return value

    return tuple(pytree.tree_map(randomised, tuple(example_inputs)))


@torch.no_grad()
def _outputs(module: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        # TF32's 10-bit products would differ by more than the tolerance between two equal functions.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            results = tensors_in(module(*inputs))
    finally:
        for child, training in modes:
            child.training = training
    return [result for result in results if result.is_floating_point()]


def _relative_error(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        same = (a == b) | (a.isnan() & b.isnan())  # an infinity, too, is itself
        gap = float(torch.where(same, 0.0, (a - b).abs()).max() / a.abs().max().clamp(min=1e-30))
        worst = worst if gap <= worst else gap  # NaN is worse than any number
    return worst
