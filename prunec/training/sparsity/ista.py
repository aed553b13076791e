"""ISTA as an optimiser: proximal steps that bring gammas to exactly zero, in any training loop.

Owns ``Ista``, a ``torch.optim.Optimizer`` around another one, and the proximal step. It knows nothing
about graphs: sparsify.py chooses the gammas to penalise, the weights and the groups.

The base optimiser updates everything except the penalised gammas, which are taken out of its groups.
They make the plain proximal-gradient step of Ye, Lu, Lin, Wang, ICLR 2018, section 3:

    γ ← prox(γ − μ·∇γ),   prox(x)_G = x_G · max(0, 1 − μ·ρ·λ_G / ‖x_G‖₂)

where a group G is one channel's gamma, or all gammas of a channel class (a residual stream), which then
reach zero together. For one gamma this is soft thresholding, sgn(x)·max(|x| − μρλ, 0).

No momentum, no weight decay and no preconditioner act on a penalised gamma, whatever the base optimiser
does. Momentum m would multiply the effect of the gradient by 1/(1 − m) but not the threshold, which at
m = 0.9 divides ρ by ten; with the plain step a gamma rests at zero exactly where |∇γ| ≤ ρλ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from prunec.errors import BadInput
from prunec.training.sparsity.betas import BetaDrive, Driven


@dataclass(frozen=True, slots=True, eq=False)
class Penalised:
    """A gamma that Ista drives towards zero.

    Args:
        parameter: float[C], the gamma itself.
        penalty: float32[C], λ of each channel; 0 leaves a channel unpenalised. None: 1 everywhere.
        group: int64[C]; channels with the same number, here or in another gamma, share one group.
            None: every channel is its own group.
        name: for messages.
    """

    parameter: nn.Parameter
    penalty: torch.Tensor | None = None
    group: torch.Tensor | None = None
    name: str = "gamma"


class Ista(Optimizer):
    """An optimiser that trains like ``base`` and brings penalised gammas to exactly zero.

    Wrap the optimiser before you make a learning-rate scheduler for it; then use only the wrapper:
    ``zero_grad``, ``step``, ``state_dict``, ``param_groups`` and schedulers, GradScaler, autocast, DDP and
    torch.compile work as they do with any optimiser. The penalised gammas are the last parameter group;
    its ``lr`` is the paper's μ (a scheduler moves it along with the others), its ``rho`` is ρ.

    ``step`` never waits for the device, and its sums have a fixed order, so that the ranks of a
    data-parallel run keep identical gammas.

    Args:
        base: updates everything else. Its groups lose the penalised gammas.
        gammas: what to penalise; bare parameters get λ = 1 and a group per channel.
        rho: weight of the penalty in the objective, ≥ 0. May be set later (``ista.rho = ...``).
        lr: μ, the gammas' step size; by default that of the base group which held the first of them.
        betas: shrunk to zero while their gammas are zero, and not trained meanwhile (betas.py).

    Raises:
        BadInput: no gammas, one that ``base`` does not hold, shapes that do not fit, a rho or lr below zero, or
            ``base`` is an ``Ista``.
    """

    def __init__(
        self,
        base: Optimizer,
        gammas: Sequence[Penalised | nn.Parameter],
        *,
        rho: float,
        lr: float | None = None,
        betas: Sequence[Driven] = (),
    ) -> None:
        if isinstance(base, Ista):
            raise BadInput(
                "the optimiser drives gammas to zero already",
                why="wrapped again, its gammas would be updated twice a step",
                do="wrap the optimiser of your own once; set rho, or the lr of the last group, on what you got",
            )
        penalised = [gamma if isinstance(gamma, Penalised) else Penalised(gamma) for gamma in gammas]
        _check(penalised, rho)
        _check_lr(lr)
        self._wrapped = False
        held_lr = _take_out(base, penalised)
        self.base = base
        parameters = [gamma.parameter for gamma in penalised]
        # OneCycleLR and its like move the momentum, and look for it in every group; here it does nothing.
        moved: dict[str, Any] = {n: base.defaults[n] for n in ("momentum", "betas") if n in base.defaults}
        super().__init__([{"params": parameters}], {**moved, "lr": held_lr if lr is None else lr, "rho": float(rho)})
        self._gammas = self.param_groups[0]
        self._betas = BetaDrive(betas) if betas else None
        self._buffers = _Buffers.of(penalised)
        self._wrapped = True
        self._link()

    def _link(self) -> None:
        """Show the base's groups and state as this optimiser's own; the base replaces both when it loads."""
        self.param_groups = [*self.base.param_groups, self._gammas]
        self.state = self.base.state

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; torch's own leaves out what a subclass has."""
        own = ("base", "_gammas", "_betas", "_buffers", "_wrapped")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the base optimiser, then the gammas; return the closure's loss, if any."""
        if self._betas is not None:
            self._betas.hold()
        loss = self.base.step() if closure is None else self.base.step(closure)
        self._step_gammas()
        if self._betas is not None:
            self._betas.step(float(self._gammas["lr"]) * float(self._gammas["rho"]))
        return loss

    def _step_gammas(self) -> None:
        parameters: list[torch.Tensor] = self._gammas["params"]
        lr, rho = self._gammas["lr"], self._gammas["rho"]
        buffers = self._buffers_here()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        moved = torch.cat(parameters) - lr * torch.cat(gradients)
        found = _prox(moved, lr * rho, buffers).split(buffers.sizes)
        # Like any optimiser, this one leaves alone what was frozen in the meantime.
        kept = [new if p.requires_grad else p.clone() for p, new in zip(parameters, found, strict=True)]
        torch._foreach_copy_(parameters, kept)

    def _buffers_here(self) -> _Buffers:
        """Return λ and the groups on the gammas' device, moved there once if the module has moved."""
        device = self._gammas["params"][0].device
        if self._buffers.penalty.device != device:
            self._buffers = self._buffers.to(device)
        return self._buffers

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimiser (it is not penalised)."""
        if not self._wrapped:
            super().add_param_group(param_group)
            return
        self.base.add_param_group(param_group)
        self._link()

    @property
    def rho(self) -> float:
        """ρ, the weight of the penalty; 0 switches it off."""
        return float(self._gammas["rho"])

    @rho.setter
    def rho(self, value: float) -> None:
        _check_rho(value)
        self._gammas["rho"] = float(value)

    @torch.no_grad()
    def sparsity(self) -> torch.Tensor:
        """Return the share of penalised gammas that are exactly zero, float32[] on the gammas' device."""
        buffers = self._buffers_here()
        zero = (torch.cat(self._gammas["params"]) == 0) & buffers.penalised
        return zero.sum() / buffers.penalised.sum().clamp(min=1)

    @torch.no_grad()
    def lasso(self) -> torch.Tensor:
        """Return Σ ρ·λ_G·‖γ_G‖₂, the penalty as the objective has it, float[] on the gammas' device."""
        buffers = self._buffers_here()
        return self.rho * (buffers.penalty * _norms(torch.cat(self._gammas["params"]), buffers)).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state dict with one more entry, ``ista``: the options of the gammas' group."""
        options = {key: value for key, value in self._gammas.items() if key != "params"}
        return {**self.base.state_dict(), "ista": options}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned.

        Raises:
            BadInput: the dict is a plain optimiser's.
        """
        if "ista" not in state_dict:
            raise BadInput(
                "the optimiser state has no 'ista' entry",
                why="it was saved by the base optimiser, whose groups still held the gammas",
                do="save and load the Ista wrapper's state_dict",
            )
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "ista"})
        self._gammas.update(state_dict["ista"])
        self._link()


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """λ and the groups, flat over all gammas (N numbers in G groups).

    Args:
        sizes: channels per gamma.
        penalty: float32[G], λ of each group.
        slots: int64[G, K], the members of each group; N (one past the end) fills short rows.
        group: int64[N], each number's row of ``slots``.
        penalised: bool[N], λ > 0.
    """

    sizes: list[int]
    penalty: torch.Tensor
    slots: torch.Tensor
    group: torch.Tensor
    penalised: torch.Tensor

    @classmethod
    def of(cls, gammas: Sequence[Penalised]) -> _Buffers:
        sizes = [gamma.parameter.numel() for gamma in gammas]
        total = sum(sizes)
        penalty = torch.cat([_penalty(gamma) for gamma in gammas])
        _, group = torch.unique(_labels(gammas, penalty), return_inverse=True)
        counts = torch.bincount(group)
        order = torch.argsort(group, stable=True)
        rank = torch.arange(total) - (counts.cumsum(0) - counts)[group[order]]
        slots = torch.full((counts.numel(), int(counts.max())), total)
        slots[group[order], rank] = order
        # All members of a class carry the class's λ; the first stands for them.
        return cls(sizes, penalty[slots[:, 0]], slots, group, penalty > 0)

    def to(self, device: torch.device) -> _Buffers:
        moved = (tensor.to(device) for tensor in (self.penalty, self.slots, self.group, self.penalised))
        return _Buffers(self.sizes, *moved)


def _penalty(gamma: Penalised) -> torch.Tensor:
    if gamma.penalty is None:
        return torch.ones(gamma.parameter.numel())
    return gamma.penalty.detach().to("cpu", torch.float32)


def _labels(gammas: Sequence[Penalised], penalty: torch.Tensor) -> torch.Tensor:
    """Return int64[N]: the same label exactly for the members of one group.

    A channel without a group of its own, or without a penalty, is alone under a negative label.
    """
    labels = -1 - torch.arange(penalty.numel())
    given = [torch.full((g.parameter.numel(),), -1) if g.group is None else g.group.cpu() for g in gammas]
    group = torch.cat(given)
    return torch.where((group >= 0) & (penalty > 0), group, labels)


def _norms(flat: torch.Tensor, buffers: _Buffers) -> torch.Tensor:
    """Return float[G], ‖flat_G‖₂. A gather and a row sum: unlike index_add, in a fixed order on every device."""
    if buffers.slots.shape[1] == 1:
        return flat[buffers.slots[:, 0]].abs()
    padded = torch.cat((flat, flat.new_zeros(1)))
    norms: torch.Tensor = torch.linalg.vector_norm(padded[buffers.slots], dim=1)
    return norms


def _prox(flat: torch.Tensor, step: Any, buffers: _Buffers) -> torch.Tensor:
    """Return prox_{step·λ}(flat), float[N]; zeros are exact. ``step`` is μ·ρ."""
    norms = _norms(flat, buffers)
    threshold = step * buffers.penalty
    scale = torch.where(norms > threshold, 1 - threshold / norms, 0.0)
    return flat * scale[buffers.group] + 0.0  # + 0.0 turns -0.0 into 0.0


def _take_out(base: Optimizer, gammas: Sequence[Penalised]) -> Any:
    """Remove the gammas from the base's groups; return the learning rate of the group that held the first."""
    ids = {id(gamma.parameter) for gamma in gammas}
    holders = {id(p): group for group in base.param_groups for p in group["params"]}
    for gamma in gammas:
        if id(gamma.parameter) not in holders:
            raise BadInput(
                f"the optimiser does not hold {gamma.name}",
                why="the optimiser has to update the gammas that are penalised",
                do="make the optimiser over all of the module's parameters",
            )
    lr = holders[id(gammas[0].parameter)]["lr"]
    for group in base.param_groups:
        # In place: LBFGS keeps this very list.
        group["params"][:] = [p for p in group["params"] if id(p) not in ids]
    for gamma in gammas:
        base.state.pop(gamma.parameter, None)
    return lr


def _check(gammas: Sequence[Penalised], rho: float) -> None:
    _check_rho(rho)
    if not gammas:
        raise BadInput(
            "there is no gamma to penalise",
            why="no BatchNorm of the network has a channel that could be removed",
            do="see what `prunec analyze` says about the network's pins",
        )
    if len({id(gamma.parameter) for gamma in gammas}) < len(gammas):
        raise BadInput("a gamma is given twice", do="give each parameter once")
    for gamma in gammas:
        for tensor in (gamma.penalty, gamma.group):
            if gamma.parameter.dim() != 1 or (tensor is not None and tensor.shape != gamma.parameter.shape):
                raise BadInput(f"{gamma.name}: gamma, penalty and group must be of one shape [C]")
        if gamma.penalty is not None and not bool((gamma.penalty >= 0).all()):
            raise BadInput(f"{gamma.name}: a penalty is negative or not a number")


def _check_lr(lr: Any) -> None:
    if lr is not None and not _is_amount(lr):
        raise BadInput(f"lr is {lr!r}", why="the gammas' step size must be a finite number, 0 or more")


def _is_amount(value: Any) -> bool:
    """Tell whether a value is a finite number, 0 or more; numpy's and a tensor's are."""
    return isinstance(value, Real | torch.Tensor) and 0 <= float(value) < float("inf")


def _check_rho(rho: float) -> None:
    if not _is_amount(rho):
        raise BadInput(f"rho is {rho!r}", why="the penalty's weight must be a finite number, 0 or more")
