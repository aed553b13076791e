"""The removal between ISTA and fine-tuning, by trained gammas or by data, and the optimiser on either side of it.

Owns which options of a run reach the removal; the removal itself is prunec/api.py's.
"""

from __future__ import annotations

import glob
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunec import api
from prunec.data.calibration import Calibration
from prunec.errors import BadInput
from prunec.pipeline.options import Border
from prunec.training.budget.goals import Goal
from prunec.training.settings.config import RunConfig
from prunec.training.sparsity.sparsify import Sparsity

_FEWEST, _MOST, _PIXELS = 64, 1000, 1 << 24
"""Images on which channels make up for others; fewer of large ones, each of which shows more places."""


def border_of(config: RunConfig, finetune_steps: int) -> Border:
    """Return how removed constants meet zero padding: the paper's way when fine-tuning follows, else exactly."""
    if config.border == "auto":
        return "bias" if finetune_steps else "exact"
    return config.border


def remove_constant(
    module: nn.Module, example_inputs: Sequence[Any], config: RunConfig, finetune_steps: int
) -> api.Pruned:
    """Remove what the zero gammas made constant.

    Args:
        module: on the CPU; left as it is.
    """
    return api.prune_module(
        module,
        tuple(example_inputs),
        name=config.model_spec,
        border=border_of(config, finetune_steps),
        keep=config.keep,
        multiple_of=config.multiple_of,
    )


def enough_images(image_shape: Sequence[int]) -> int:
    """Return on how many images of (C, H, W) ``remove_by_data`` should work."""
    return max(_FEWEST, min(_MOST, _PIXELS // math.prod(image_shape[1:])))


def remove_by_data(
    module: nn.Module,
    images: torch.Tensor,
    config: RunConfig,
    finetune_steps: int,
    goals: Sequence[Goal],
    plan: Sparsity,
) -> api.Pruned:
    """Remove what is constant and then, until the goals hold, what the rest makes up for; fit the rest to do so.

    Args:
        module: on the CPU; left as it is.
        images: float32[N, C, H, W], inputs as the network takes them, on the CPU.
        plan: of ``module``; what it does not penalise stays, as it does with ISTA.

    Raises:
        BudgetNotMet: what cannot go costs more.
        BadInput: the images say nothing: all are the same.
    """
    shares = {goal.quantity: goal.share for goal in goals}
    stay = [g.param for g in plan.gammas if bool((g.decides & ~plan.penalised[g.classes]).any())]
    with tempfile.TemporaryDirectory(prefix="prunec-", ignore_cleanup_errors=True) as folder:
        np.save(Path(folder) / "images.npy", images.numpy())
        try:
            return api.prune_module(
                module,
                (images[:2],),
                name=config.model_spec,
                border=border_of(config, finetune_steps),
                keep=(*config.keep, *map(glob.escape, stay)),
                multiple_of=config.multiple_of,
                criterion="reconstruct",
                calibration=Calibration(folder),
                validate=False,
                target_macs=shares.get("macs"),
                target_params=shares.get("params"),
            )
        except BadInput as error:
            # The user's data are in another place than this copy of some of them.
            what = error.what.replace(folder, f"{config.data} (training images)")
            raise BadInput(what, why=error.why, do=error.do) from error


def base_optimizer(module: nn.Module, config: RunConfig, lr: float) -> torch.optim.Optimizer:
    """Return the optimiser of both halves of a run; vectors (biases, gammas, betas) have no weight decay."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.optimizer == "nesterov")
