"""Module -> Ista: three lines that bring sparsity to any training loop.

Turns the results of the passes (which gammas, which classes, which λ) into an optimiser.

    ista = sparsify(module, (images,), torch.optim.SGD(module.parameters(), lr=0.1), rho=1e-3)
    ...                                        # train with ista in place of the optimiser
    pruned = prunec.prune_module(module, (images,)).module   # channels whose gamma is zero go
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from prunec.errors import BadInput
from prunec.frontends.fx.running.arguments import Example
from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses
from prunec.ir.taught import NO_RULES, OpRules
from prunec.passes.channels import channels
from prunec.passes.sparsity.gammas import Gamma, gammas, gated_classes, residual_classes
from prunec.passes.sparsity.penalty import PenaltyKind, Price, penalty
from prunec.pipeline.reading import read_module
from prunec.training.sparsity.betas import Driven
from prunec.training.sparsity.ista import Ista, Penalised

Residual = Literal["group", "keep"]


@dataclass(frozen=True, slots=True, eq=False)
class Sparsity:
    """What training may prune, computed once per network.

    Args:
        graph, classes: the network.
        gammas: all BatchNorm scales.
        penalised: bool[num_classes], the classes whose gammas are driven to zero.
        penalty: float64[num_classes], λ.
        driven: bool[num_classes], the penalised classes whose betas follow their gammas to zero: those that are
            multiplied by a computed gate on the way to a contraction, where only a constant of zero is constant.
        focus: bool[num_classes], the penalised classes that the penalty is on; None: all.
    """

    graph: Graph
    classes: ChannelClasses
    gammas: tuple[Gamma, ...]
    penalised: Mask
    penalty: np.ndarray[Any, np.dtype[np.float64]]
    driven: Mask
    focus: Mask | None = None

    @property
    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """λ where the penalty acts, and zero elsewhere, float64[num_classes]."""
        return self.penalty if self.focus is None else np.where(self.focus, self.penalty, 0.0)

    def channels_of(self, gamma: Gamma) -> Mask:
        """Return bool[C], the channels of ``gamma`` that are penalised."""
        return self.penalised[gamma.classes] & gamma.decides

    @property
    def num_gammas(self) -> int:
        """How many numbers are penalised."""
        return sum(int(self.channels_of(gamma).sum()) for gamma in self.gammas)


def sparsify(
    module: nn.Module,
    example_inputs: Example,
    optimizer: torch.optim.Optimizer,
    *,
    rho: float,
    penalty: PenaltyKind | Price = "memory",
    residual: Residual = "group",
    keep: str | Sequence[str] = (),
    lr: float | None = None,
    rules: OpRules = NO_RULES,
) -> Ista:
    """Wrap ``optimizer`` so that it also drives the gammas of removable channels to zero.

    Args:
        module: any module prunec can trace; it is not changed.
        example_inputs: arguments of ``module`` for the trace: a sequence by position, a dict by name, or the only one.
        optimizer: over the module's parameters; it loses the penalised gammas (see Ista).
        rho: ρ, weight of the penalty, ≥ 0.
        penalty: what a channel costs: ``memory`` (weights and map), ``macs``, ``uniform``, or a function of yours, see
            docs/extending.md.
        residual: ``group`` prunes residual streams with a group penalty over all their gammas;
            ``keep`` leaves them alone, as the paper does for ResNet-20.
        keep: a shell pattern, or several, over parameter and node names whose channels must stay.
        lr: μ, the gammas' step size; by default the optimiser's.
        rules: what your own ops are like, by name ("mylib::swish"), see docs/extending.md.

    Raises:
        BadInput: no gamma can be pruned, or the optimiser does not hold one that can.
        UntraceableModel: the module cannot be read.
    """
    if residual not in get_args(Residual):
        raise BadInput(f"residual is {residual!r}", do=f"use one of: {', '.join(get_args(Residual))}")
    graph = read_module(module, example_inputs, rules=rules).graph
    plan = plan_sparsity(
        graph, channels(graph, (keep,) if isinstance(keep, str) else keep), module, kind=penalty, residual=residual
    )
    return build(plan, module, optimizer, rho=rho, lr=lr)


def plan_sparsity(
    graph: Graph,
    classes: ChannelClasses,
    module: nn.Module,
    *,
    kind: PenaltyKind | Price = "memory",
    residual: Residual = "group",
    drive_all: bool = False,
) -> Sparsity:
    """Find the classes of ``module`` that can be trained away, and their λ.

    A class with a frozen gamma (``requires_grad`` False) is left alone, because it could never go as a whole.

    Args:
        kind, residual: see ``sparsify``.
        drive_all: the betas of all penalised classes follow their gammas to zero, not only those behind gates.
    """
    found = gammas(graph, classes)
    penalised = np.zeros(classes.num_classes, dtype=bool)
    for gamma in found:
        penalised[gamma.classes[gamma.prunable]] = True
    parameters = named_parameters(module)
    for gamma in found:
        if gamma.param not in parameters or not parameters[gamma.param].requires_grad:
            penalised[gamma.classes[gamma.decides]] = False
    if residual == "keep":
        penalised &= ~residual_classes(graph, classes)
    driven = penalised.copy() if drive_all else gated_classes(found, classes) & penalised
    return Sparsity(graph, classes, found, penalised, penalty(graph, classes, kind), driven)


def build(
    plan: Sparsity, module: nn.Module, optimizer: torch.optim.Optimizer, *, rho: float, lr: float | None = None
) -> Ista:
    """Make the optimiser for a plan.

    Raises:
        BadInput: nothing can be penalised, or the optimiser does not hold a gamma.
    """
    require_some(plan)
    parameters = named_parameters(module)
    chosen = []
    for gamma in plan.gammas:
        mask = plan.channels_of(gamma)
        if mask.any():
            weights = torch.from_numpy(np.where(mask, plan.weights[gamma.classes], 0.0)).float()
            group = torch.from_numpy(np.where(mask, gamma.classes, -1))
            chosen.append(Penalised(parameters[gamma.param], weights, group, gamma.param))
    return Ista(optimizer, chosen, rho=rho, lr=lr, betas=_driven(plan, parameters))


def _driven(plan: Sparsity, parameters: Mapping[str, nn.Parameter]) -> list[Driven]:
    """Return the betas that follow their gammas to zero, with λ."""
    found = []
    for gamma in plan.gammas:
        mask = plan.channels_of(gamma) & plan.driven[gamma.classes]
        if mask.any() and gamma.beta in parameters and parameters[gamma.beta].requires_grad:
            weights = torch.from_numpy(np.where(mask, plan.weights[gamma.classes], 0.0)).float()
            found.append(Driven(parameters[gamma.param], parameters[gamma.beta], weights))
    return found


def require_some(plan: Sparsity) -> None:
    """Check that there is something to train away.

    Raises:
        BadInput: no class is penalised.
    """
    if not plan.penalised.any():
        raise BadInput("no channel of the network can be trained away", why=_why_not(plan), do=_WHAT_TO_DO)


_WHAT_TO_DO = "use a network with trainable BatchNorms between its convolutions; `prunec analyze` names what pins it"


def _why_not(plan: Sparsity) -> str:
    if not plan.gammas:
        return "it has no BatchNorm with a scale"
    pinned = sum(int(plan.classes.pinned[gamma.classes].sum()) for gamma in plan.gammas)
    total = sum(gamma.classes.size for gamma in plan.gammas)
    return f"of its {total} BatchNorm channels {pinned} are pinned, and the others are frozen or kept"


def named_parameters(module: nn.Module) -> Mapping[str, nn.Parameter]:
    """Return every name of every parameter: a shared one appears under each of its names."""
    return dict(module.named_parameters(remove_duplicate=False))


def gamma_values(plan: Sparsity, module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Copy every gamma of ``plan`` to the CPU: parameter name -> float[C]."""
    parameters = named_parameters(module)
    return {gamma.param: parameters[gamma.param].detach().cpu().numpy() for gamma in plan.gammas}
