"""What the phases optimise and watch: ISTA with its controller, and fine-tuning.

Owns the two ``Task``s of loop.py. The decisions are controller.py's, the sizes footprint.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from prunec.training.controller import Controller, Reading
from prunec.training.footprint import check_alive, keep_mask, size_under, zero_gammas
from prunec.training.ista import Ista
from prunec.training.setup import Setup
from prunec.training.sparsity import Sparsity, named_parameters

NUM_BINS = 24


def gamma_values(plan: Sparsity, module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Copy every gamma of ``plan`` to the CPU: parameter name -> float[C]."""
    parameters = named_parameters(module)
    return {gamma.param: parameters[gamma.param].detach().cpu().numpy() for gamma in plan.gammas}


class Sparsify:
    """Warm-up (``controller`` None: no penalty) and ISTA.

    Args:
        lr, gamma_lr: constant step sizes of the weights and of the penalised gammas.
        top: right end of the histogram of |γ|.
    """

    def __init__(
        self,
        setup: Setup,
        module: nn.Module,
        ista: Ista,
        controller: Controller | None,
        *,
        lr: float,
        gamma_lr: float,
        top: float,
    ) -> None:
        self._setup, self._module, self._ista, self._controller = setup, module, ista, controller
        self._lr, self._gamma_lr = lr, gamma_lr
        self._edges = np.linspace(0.0, top, NUM_BINS + 1)

    def before_step(self, progress: float) -> None:
        for group in self._ista.param_groups:
            group["lr"] = self._lr
        self._ista.param_groups[-1]["lr"] = self._gamma_lr
        self._ista.rho = self._controller.rho_at(progress) if self._controller is not None else 0.0

    def measure(self, progress: float, loss: float) -> Mapping[str, Any]:
        plan = self._setup.sparsity
        values = gamma_values(plan, self._module)
        keep = keep_mask(plan, zero_gammas(plan, values))
        size = size_under(plan.graph, plan.classes, keep)
        sparsity, lasso = float(self._ista.sparsity()), float(self._ista.lasso())
        row = {
            "sparsity": sparsity,
            "lasso": lasso,
            "rho": self._ista.rho,
            "params_if_pruned": size.params,
            "macs_if_pruned": size.macs,
            "gamma_histogram": self._histogram(values),
        }
        if self._controller is not None:
            check_alive(plan.graph, plan.classes, keep, self._ista.rho)
            left = size.params / self._setup.full.params
            if self._setup.config.target_macs is not None:
                left = size.macs / self._setup.full.macs
            self._controller.observe(Reading(progress, loss, sparsity, lasso, left))
        return row

    def _histogram(self, values: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, list[float]]:
        plan = self._setup.sparsity
        chosen = [np.abs(values[gamma.param][plan.channels_of(gamma)]) for gamma in plan.gammas]
        counts, _ = np.histogram(np.minimum(np.concatenate(chosen), self._edges[-1]), self._edges)
        return {"edges": self._edges.round(6).tolist(), "counts": counts.tolist()}

    def stop_reason(self) -> str:
        return self._controller.is_done() if self._controller is not None else ""

    def advice(self) -> list[str]:
        return self._controller.advice() if self._controller is not None else []


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
