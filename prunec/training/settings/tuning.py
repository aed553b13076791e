"""ρ, α and μ when the user gives none, by the guidelines of Ye, Lu, Lin, Wang, ICLR 2018, section 3.4, and beyond.

Owns the rules, their reasons, and which of them a run needs. With a budget, controller.py then adjusts ρ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Floats, Mask
from prunec.training.settings.config import RunConfig
from prunec.training.settings.setup import ISTA, Setup
from prunec.training.sparsity.sparsify import Sparsity

ALPHAS = (1.0, 0.1, 0.01, 0.001)
REGULARISER_SHARE = 0.3
"""The regulariser's start, as a share of the loss of guessing. The paper's ConvNet starts at 0.35 by this measure."""


REACH_SHARE = 1 / 3
"""Share of the ISTA steps within which a gamma without use should reach zero."""
FOCUS_SHARE = 1 / 2
"""The same for half of the penalised gammas, if these are chosen: see focus.py."""
LARGEST_MU = 1.0
"""Above it, the noise of gradients moves gammas of usual size by themselves."""
MOST_TIMES = 10.0
"""By how much a short run may raise ρ above the paper's rule."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A value and the sentence that explains it."""

    value: float
    reason: str


@dataclass(frozen=True, slots=True)
class GammaSummary:
    """Statistics of the gammas, which the rules use.

    Args:
        weighted: Σ λ_G·‖γ_G‖₂ over the penalised classes.
        mean: mean |γ| over them.
        mean_penalty: mean λ.
        reach: median of ‖γ_G‖₂/λ_G: a gamma without use is zero after α·reach/(μ·ρ) steps.
    """

    weighted: float
    mean: float
    mean_penalty: float
    reach: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """The values at the start; ``mu`` is None if gammas take the given step size, or that of the weights."""

    alpha: Choice
    rho: Choice
    mu: Choice | None = None


def choose(setup: Setup, values: Mapping[str, Floats]) -> Chosen:
    """Fix α, ρ and μ, as given or by the rules.

    Args:
        values: each gamma parameter's float[C].
    """
    config, chance_loss = setup.config, setup.objective.chance_loss
    gammas, steps = gamma_summary(setup.sparsity, values), setup.phases[ISTA].steps
    if setup.sparsity.focus is not None:
        return _with_focus(gammas, config, steps)
    if config.pretrained and config.alpha is None and config.gamma_lr is None:
        return _with_own_step(gammas, config, chance_loss, steps)
    mu = config.gamma_lr or config.lr
    if config.alpha is not None:
        alpha = Choice(config.alpha, f"given{_too_fast(config)}")
    elif config.pretrained:
        alpha = choose_alpha(gammas, mu, config.lr, config.rho, chance_loss)
    else:
        alpha = Choice(1.0, "training starts from scratch")
    if config.rho is not None:
        return Chosen(alpha, Choice(config.rho, "given"))
    return Chosen(alpha, choose_rho_in_time(gammas, alpha.value, chance_loss, mu, steps))


def _too_fast(config: RunConfig) -> str:
    """Return a warning if a given α is likely to ruin a trained network, else ""."""
    alpha = config.alpha
    if not config.pretrained or alpha is None or config.lr / alpha**2 <= 10 * LARGEST_MU:
        return ""
    rate = _two_digits(config.lr / alpha**2)
    return f", but betas then learn as with a rate of {rate:g} (lr/α²): lower lr, or raise alpha"


def _with_focus(gammas: GammaSummary, config: RunConfig, steps: int) -> Chosen:
    """Choose ρ so that the chosen gammas reach zero in time; it need not find out which channels are superfluous."""
    mu = _two_digits(config.lr / (1 - config.momentum) if config.momentum < 1 else config.lr)
    reach = max(1, round(FOCUS_SHARE * steps))
    rho = _two_digits(gammas.reach / (mu * reach))
    in_time = f"half of the gammas that it is on then reach zero within about {reach} of the {steps} steps of ISTA"
    return Chosen(
        Choice(1.0, "gammas have a step size of their own"),
        Choice(rho, in_time),
        Choice(mu, "gammas learn as fast as with momentum"),
    )


def _with_own_step(gammas: GammaSummary, config: RunConfig, chance_loss: float, steps: int) -> Chosen:
    """Leave a trained network's scales alone, and give its gammas a step size of their own.

    A small α lets gammas reach zero in fewer steps, but multiplies the learning rate of betas by 1/α² and that of the
    weights behind them by α², which ruins the network before it is sparse. A larger μ speeds up gammas only.
    """
    alpha = Choice(1.0, "gammas have a step size of their own")
    rho = choose_rho(gammas, 1.0, chance_loss) if config.rho is None else Choice(config.rho, "given")
    mu = choose_mu(gammas, rho.value, config.lr, steps)
    if config.rho is None:
        rho = choose_rho_in_time(gammas, 1.0, chance_loss, mu.value, steps)
        mu = Choice(mu.value, _when_zero(round(gammas.reach / (mu.value * rho.value)), steps))
    return Chosen(alpha, rho, mu)


def choose_mu(gammas: GammaSummary, rho: float, lr: float, steps: int) -> Choice:
    """Choose μ so that a gamma without use reaches zero within a third of ``steps``; from ``lr`` to 1."""
    if rho == 0:
        return Choice(lr, "there is no penalty")
    needed = gammas.reach / (rho * REACH_SHARE * max(1, steps))
    mu = _two_digits(min(LARGEST_MU, max(lr, needed)))
    return Choice(mu, _when_zero(round(gammas.reach / (mu * rho)), steps))


def gamma_summary(plan: Sparsity, values: Mapping[str, Floats]) -> GammaSummary:
    """Measure the penalised gammas; ``values`` has each gamma parameter's float[C]."""
    squares = np.zeros(plan.classes.num_classes)
    magnitudes: list[Floats] = []
    for gamma in plan.gammas:
        mask: Mask = plan.channels_of(gamma)
        own = np.abs(values[gamma.param][mask])
        np.add.at(squares, gamma.classes[mask], own**2)
        magnitudes.append(own)
    norms, weights = np.sqrt(squares), plan.weights
    used = plan.penalised & (weights > 0)
    alive = used & (norms > 0)
    every = np.concatenate(magnitudes)
    return GammaSummary(
        weighted=float((weights * norms).sum()),
        mean=float(every.mean()),
        mean_penalty=float(weights[used].mean()),
        reach=float(np.median(norms[alive] / weights[alive])) if alive.any() else 0.0,
    )


def choose_rho(gammas: GammaSummary, alpha: float, chance_loss: float) -> Choice:
    """Choose ρ so that loss and regulariser are comparable at the start."""
    weighted = max(alpha * gammas.weighted, 1e-12)
    rho = REGULARISER_SHARE * chance_loss / weighted
    share = f"{REGULARISER_SHARE:g} of the loss of guessing ({chance_loss:.3g})"
    return Choice(_two_digits(rho), f"the penalty starts at {share}; Σλ|γ| is {weighted:.3g}")


def choose_rho_in_time(gammas: GammaSummary, alpha: float, chance_loss: float, mu: float, steps: int) -> Choice:
    """Choose ρ as ``choose_rho``, or larger if gammas without use would not reach zero within a third of ``steps``.

    The paper's ρ are for tens of thousands of steps. At most ten times its rule: beyond that the
    penalty outweighs the loss, and the run should be longer.
    """
    comparable = choose_rho(gammas, alpha, chance_loss)
    needed = alpha * gammas.reach / (mu * REACH_SHARE * max(1, steps))
    if needed <= comparable.value:
        return comparable
    rho = _two_digits(min(needed, MOST_TIMES * comparable.value))
    return Choice(rho, _when_zero(round(alpha * gammas.reach / (mu * rho)), steps))


def _when_zero(reach: int, steps: int) -> str:
    """Say how soon a gamma without use reaches zero."""
    if reach > steps:
        return f"a gamma without use would take about {reach} steps to zero, and ISTA has {steps}: train longer"
    return f"a gamma without use then reaches zero within about {reach} of the {steps} steps of ISTA"


def choose_alpha(gammas: GammaSummary, mu: float, lr: float, rho: float | None, chance_loss: float) -> Choice:
    """Choose α of 1, 0.1, 0.01, 0.001 so that mean |αγ| is nearest to 100·μ·λ·ρ: zero within a few hundred steps.

    Gammas then learn as with μ/α², and betas as with lr/α²: values of α for which one of these is above 1 would ruin
    the network, and are left out. If ρ is to be chosen too, the comparison uses the ρ that belongs to each α.
    """
    if rho == 0:
        return Choice(1.0, "there is no penalty")

    def mismatch(alpha: float) -> float:
        weight = choose_rho(gammas, alpha, chance_loss).value if rho is None else rho
        steps = alpha * gammas.mean / max(mu * gammas.mean_penalty * weight, 1e-30)
        return float(abs(np.log(max(steps, 1e-30) / 100)))

    fastest = max(mu, lr)
    usable = [alpha for alpha in ALPHAS if alpha == 1 or fastest / alpha**2 <= 1.001 * LARGEST_MU]  # 0.01 / 0.1² is 1
    best = min(usable, key=mismatch)
    reason = f"of {', '.join(f'{alpha:g}' for alpha in usable)} the one whose mean |αγ| is nearest to 100·μ·λ·ρ"
    if len(usable) < len(ALPHAS):
        reason += f"; with a smaller one gammas or betas would learn as with a rate above {LARGEST_MU:g}"
    return Choice(best, reason)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
