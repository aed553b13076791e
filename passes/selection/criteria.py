"""Criteria: by what a budget takes channels. A new one is a row of ``CRITERIA``, and a name of ``Name``.

Owns that table and what is said where a criterion cannot be used. The arithmetic from weights to channel classes is
scores.py's, the order of ``reconstruct`` is passes/fitting/'s, the choice under a budget budget.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from prunec.errors import BadInput
from prunec.ir.arrays import Floats
from prunec.passes.selection.scores import computed, gammas, makers, mean_over, per_class, per_group
from prunec.passes.selection.select import Facts

Name = Literal["l1", "gamma", "taylor", "random", "reconstruct"]

Scorer = Callable[[Facts], Floats]
"""A criterion of the user's own: float64[num_classes], the lowest go first; infinite or NaN: none of its business."""

WITH_DATA: Name = "reconstruct"
WITHOUT_DATA: Name = "l1"
"""What is used where a budget is given and no criterion."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a criterion may look at beside the network.

    Args:
        seed: of random scores.
        saliency: parameter name -> importance of each of its elements.
    """

    seed: int = 0
    saliency: Mapping[str, np.ndarray[Any, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion with a name.

    Args:
        score: network, what else is given -> float64[num_classes], the lowest go first; None: the order in which
            channels go comes with the fit to the data.
        needs: what it needs of the user: nothing, data for gradients, or data to fit.
        why: what it needs them for.
    """

    score: Callable[[Facts, Given], Floats] | None
    needs: Literal["", "gradients", "data"] = ""
    why: str = ""


def score(
    facts: Facts, criterion: str | Scorer, *, seed: int = 0, saliency: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> Floats:
    """Return float64[num_classes]; the lowest scores go first.

    Criteria:
        l1: mean |w| of the weight slices that make the channel (Li et al., ICLR 2017).
        gamma: mean |gamma| of the BatchNorms on the channel (Liu et al., ICCV 2017); l1 where there is none.
        taylor: sum of the given saliency over all slices of the channel (Molchanov et al., CVPR 2019).
        random: a seeded draw, the baseline.
        a function: what it returns, see ``Scorer``; ``scores.per_class`` makes that of a number per weight.

    Raises:
        BadInput: no such criterion, taylor without a saliency, or gamma where no BatchNorm is left; a function that
            raises, or returns something else than one number per class.
    """
    if not isinstance(criterion, str):
        return _asked(criterion, facts)
    row = CRITERIA.get(criterion)
    if row is None or row.score is None:
        known = _listed(list(CRITERIA) if row is None else _scored())
        raise BadInput(f"there is no criterion {criterion!r}", do=f"use {known}")
    check_has_data(criterion, data=False, saliency=saliency is not None)
    return row.score(facts, Given(seed, saliency))


def check_has_data(criterion: str | Scorer | None, *, data: bool, saliency: bool = False) -> None:
    """Refuse a criterion that needs data, where there are none.

    Raises:
        BadInput: it needs data, or gradients, and they were not given.
    """
    what = needs(criterion)
    if not what or data or (what == "gradients" and saliency):
        return
    raise BadInput(
        f"the {criterion} criterion needs {what}",
        why=CRITERIA[str(criterion)].why,
        do=f"give inputs of the network (--calibrate FOLDER), or use {_listed(_free())}",
    )


def needs(criterion: str | Scorer | None) -> str:
    """Return what a criterion needs of the user beside the network: "", "gradients" or "data"."""
    return CRITERIA[criterion].needs if isinstance(criterion, str) and criterion in CRITERIA else ""


def name_of(criterion: str | Scorer) -> str:
    """Return what reports call a criterion."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)


# --- the rows -------------------------------------------------------------------------------------------


def _l1(facts: Facts, _: Given) -> Floats:
    return per_group(facts, mean_over(facts, makers(facts), computed(facts)))


def _gamma(facts: Facts, _: Given) -> Floats:
    if not gammas(facts):
        raise BadInput(
            "the gamma criterion needs BatchNorms, and the network has none",
            why="exporters fold them into the convolutions before them",
            do="use --criterion l1 or taylor, or export with BatchNorms kept (torch.onnx.export: "
            "training=TrainingMode.PRESERVE, do_constant_folding=False)",
        )
    by_gamma = mean_over(facts, gammas(facts))
    return per_group(facts, np.where(np.isnan(by_gamma), mean_over(facts, makers(facts), computed(facts)), by_gamma))


def _taylor(facts: Facts, given: Given) -> Floats:
    assert given.saliency is not None
    return per_class(facts, given.saliency)


def _random(facts: Facts, given: Given) -> Floats:
    return np.random.default_rng(given.seed).random(facts.classes.num_classes)


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "l1": Criterion(_l1),
        "gamma": Criterion(_gamma),
        "taylor": Criterion(_taylor, "gradients", "they are taken on inputs of the network"),
        "random": Criterion(_random),
        "reconstruct": Criterion(None, "data", "they show which channels make up for which"),
    }
)
"""Name -> criterion."""


def _scored() -> list[str]:
    return [name for name, row in CRITERIA.items() if row.score is not None]


def _free() -> list[str]:
    return [name for name, row in CRITERIA.items() if not row.needs]


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _asked(criterion: Scorer, facts: Facts) -> Floats:
    """Return what a function of the user's says, if it says one number per class."""
    name = name_of(criterion)
    try:
        found = np.asarray(criterion(facts), dtype=np.float64)
    except Exception as error:
        raise BadInput(f"the criterion {name} raised {type(error).__name__}: {error}", do="mend it") from error
    if found.shape != (facts.classes.num_classes,):
        raise BadInput(
            f"the criterion {name} returned an array of shape {list(found.shape)}",
            why=f"the network has {facts.classes.num_classes} channel classes, and each needs one number",
            do="return prunec.passes.selection.scores.per_class(facts, importance), or an array of that size",
        )
    return np.where(np.isnan(found), np.inf, found)
