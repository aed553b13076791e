"""The removal between ISTA and fine-tuning, by trained gammas or by data, and the optimiser on either side of it.

Translates the options of a run for the removal, which is prunec/api.py's.
"""

from __future__ import annotations

import glob
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

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
"""Images for the fit; fewer if they are large, because each then shows more positions."""


def border_of(config: RunConfig, finetune_steps: int) -> Border:
    """Return the treatment of removed constants at zero padding: the paper's if fine-tuning follows, else exact."""
    if config.border == "auto":
        return "bias" if finetune_steps else "exact"
    return config.border


MILD, LONG = 0.5, 2_000
"""The share of the MACs that stays, and the steps of fine-tuning, from which removing the smallest filters is better.

So it was for ResNet-20 (docs/results.md): at half of the MACs l1 was no worse with 2,400 steps, ahead with 12,000, and
left fewer parameters; with 600 it was behind, and at 30% with any number."""


def criterion_of(config: RunConfig, finetune_steps: int) -> Literal["l1", "reconstruct"]:
    """Return what chooses the channels that a budget needs besides those whose gammas are zero."""
    if config.criterion != "auto":
        return config.criterion
    mild = config.target_params is None and config.target_macs is not None and config.target_macs >= MILD
    return "l1" if not (config.goals or config.milestones) or (mild and finetune_steps >= LONG) else "reconstruct"


def remove_constant(
    module: nn.Module, example_inputs: Sequence[Any], config: RunConfig, finetune_steps: int
) -> api.Pruned:
    """Remove the channels that zero gammas made constant.

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
    """Return the number of images of (C, H, W) for ``remove_by_data``."""
    return max(_FEWEST, min(_MOST, _PIXELS // math.prod(image_shape[1:])))


def remove_by_data(
    module: nn.Module,
    images: torch.Tensor,
    config: RunConfig,
    finetune_steps: int,
    goals: Sequence[Goal],
    plan: Sparsity,
) -> api.Pruned:
    """Remove constant channels, then those that the rest can best make up for until the goals hold; fit the rest.

    Args:
        module: on the CPU; left as it is.
        images: float32[N, C, H, W], inputs as the network takes them, on the CPU.
        plan: of ``module``; channels that it does not penalise stay, as with ISTA.

    Raises:
        BudgetNotMet: channels that have to stay cost more.
        BadInput: all images are the same.
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
                calibration=Calibration(folder, orders=1),  # fine-tuning follows, and was measured with the first
                validate=False,
                target_macs=shares.get("macs"),
                target_params=shares.get("params"),
            )
        except BadInput as error:
            # The message should not name the temporary copy of the user's images.
            what = error.what.replace(folder, f"{config.data} (training images)")
            raise BadInput(what, why=error.why, do=error.do) from error


def base_optimizer(module: nn.Module, config: RunConfig, lr: float) -> torch.optim.Optimizer:
    """Return the optimiser before and after the removal; vectors (biases, gammas, betas) have no weight decay."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.optimizer == "nesterov")
