"""From trained gammas to a smaller network, and the optimiser of both.

Owns the step between ISTA and fine-tuning; the removal itself is prunec/api.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunec import api
from prunec.pipeline.options import Border
from prunec.training.settings.config import RunConfig


def border_of(config: RunConfig, finetune_steps: int) -> Border:
    """Return how removed constants meet zero padding: the paper's way when fine-tuning follows, else exactly."""
    if config.border == "auto":
        return "bias" if finetune_steps else "exact"
    return config.border


def remove(module: nn.Module, example_inputs: Sequence[Any], config: RunConfig, finetune_steps: int) -> api.Pruned:
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
