"""What the phases optimise and watch: ISTA with its controller, and fine-tuning.

Owns the two ``Task``s of loop.py. controller.py decides, footprint.py counts sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from prunec.errors import CheckFailed, EmptyNetwork
from prunec.ir.arrays import Mask
from prunec.training.budget.footprint import Size, check_alive, keep_mask, size_under, zero_gammas
from prunec.training.budget.goals import excess
from prunec.training.budget.landing import GammaHistory
from prunec.training.run.record import Record
from prunec.training.settings.setup import Setup
from prunec.training.sparsity.controller import Controller
from prunec.training.sparsity.ista import Ista
from prunec.training.sparsity.sparsify import gamma_values, named_parameters
from prunec.training.sparsity.symptoms import Reading, Symptom

NUM_BINS = 24


class Sparsify:
    """Warm-up (``controller`` None: no penalty) and ISTA.

    Args:
        history: the gammas before they became zero.
        record: of the run; ``top`` and ``mu`` are read.
    """

    def __init__(
        self,
        setup: Setup,
        module: nn.Module,
        ista: Ista,
        controller: Controller | None,
        history: GammaHistory,
        record: Record,
    ) -> None:
        self._setup, self._module, self._ista, self._controller = setup, module, ista, controller
        self._history = history
        self._emptied = ""
        self._counted: tuple[bytes, Size] | None = None
        self._found: list[Symptom] = []
        self._lr = setup.config.lr
        self._gamma_lr = setup.config.gamma_lr or record.mu or setup.config.lr
        self._edges = np.linspace(0.0, record.top, NUM_BINS + 1)

    def before_step(self, progress: float) -> None:
        for group in self._ista.param_groups:
            group["lr"] = self._lr
        self._ista.param_groups[-1]["lr"] = self._gamma_lr
        self._ista.rho = self._controller.rho_at(progress) if self._controller is not None else 0.0

    def measure(self, progress: float, loss: float) -> Mapping[str, Any]:
        plan = self._setup.sparsity
        values = gamma_values(plan, self._module)
        keep = keep_mask(plan, zero_gammas(plan, values))
        size = self._size(values, keep)
        sparsity, lasso = self._sparsity(values), float(self._ista.lasso())
        row = {
            "sparsity": sparsity,
            "lasso": lasso,
            "rho": self._ista.rho,
            "params_if_pruned": size.params,
            "macs_if_pruned": size.macs,
            "gamma_histogram": self._histogram(values),
        }
        if self._controller is not None:
            self._history.observe(values)
            emptied = self._is_emptied(keep)
            goals = self._setup.goals
            left = excess(goals, size, self._setup.full) if goals else 1.0
            self._controller.observe(Reading(progress, loss, sparsity, lasso, left))
            self._found = self._controller.symptoms(emptied)
            row["symptoms"] = [symptom.name for symptom in self._found]
        return row

    def _sparsity(self, values: Mapping[str, np.ndarray[Any, Any]]) -> float:
        """Return the share of the prunable gammas that are zero."""
        plan = self._setup.sparsity
        zero = sum(int((values[g.param][plan.channels_of(g)] == 0).sum()) for g in plan.gammas)
        return zero / plan.num_gammas

    def _size(self, values: Mapping[str, np.ndarray[Any, Any]], keep: Mask) -> Size:
        """Return the size if pruned now: under a budget counted as by the removal, else a quick estimate."""
        plan = self._setup.sparsity
        if not self._setup.goals:
            content = keep.tobytes()
            if self._counted is None or self._counted[0] != content:
                self._counted = content, size_under(plan.graph, plan.classes, keep)
            return self._counted[1]
        parameters = named_parameters(self._module)
        betas = {g.beta: parameters[g.beta].detach().cpu().numpy() for g in plan.gammas if g.beta in parameters}
        return self._setup.sizer.size({**values, **betas})

    def _is_emptied(self, keep: Mask) -> bool:
        """Refuse to empty the network; a symptom if the run stops at these, and the end of the phase under a budget."""
        plan = self._setup.sparsity
        try:
            check_alive(plan.graph, plan.classes, keep, self._ista.rho)
        except EmptyNetwork as error:
            if self._setup.config.on_symptom != "warn":
                return True
            if not self._setup.goals:
                raise
            self._emptied = error.what
        return False

    def _histogram(self, values: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, list[float]]:
        plan = self._setup.sparsity
        chosen = [np.abs(values[gamma.param][plan.channels_of(gamma)]) for gamma in plan.gammas]
        counts, _ = np.histogram(np.minimum(np.concatenate(chosen), self._edges[-1]), self._edges)
        return {"edges": self._edges.round(6).tolist(), "counts": counts.tolist()}

    def stop_reason(self) -> str:
        if self._controller is None:
            return ""
        return self._controller.is_done() or self._emptied

    def advice(self) -> list[str]:
        return [symptom.sentence for symptom in self._found]

    def failure(self) -> CheckFailed | None:
        if not self._found or self._setup.config.on_symptom != "stop":
            return None
        return CheckFailed(
            "; ".join(symptom.sentence.partition(":")[0] for symptom in self._found),
            why="the run was to stop at a symptom (--on-symptom stop)",
            do=f"{self._found[0].sentence.partition('; ')[2]}; or go on from the checkpoint with --resume",
        )


class FineTune:
    """Plain SGD on the pruned network, its learning rate falling along a cosine to zero."""

    def __init__(self, setup: Setup, optimizer: torch.optim.Optimizer, params: int, macs: int) -> None:
        self._lr, self._optimizer = setup.config.finetune_lr, optimizer
        self._params, self._macs = params, macs

    def before_step(self, progress: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * (1 + math.cos(math.pi * progress)) / 2

    def measure(self, progress: float, loss: float) -> Mapping[str, Any]:  # noqa: ARG002 - as in Task
        return {
            "sparsity": None,
            "lasso": None,
            "rho": 0.0,
            "params_if_pruned": self._params,
            "macs_if_pruned": self._macs,
        }

    def stop_reason(self) -> str:
        return ""

    def advice(self) -> list[str]:
        return []

    def failure(self) -> CheckFailed | None:
        return None
