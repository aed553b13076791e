"""The removal of a run: rank 0 decides which channels go, and every process removes them.

Chooses between the two removals (removal.py has both), and the images that one of them uses.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunec import api
from prunec.ir.plan import PrunePlan
from prunec.pipeline.apply import apply_plan
from prunec.training.budget.footprint import Size
from prunec.training.budget.goals import in_words
from prunec.training.data.batches import sampled_batches
from prunec.training.run.context import Context
from prunec.training.settings.removal import enough_images, remove_by_data, remove_constant


def remove(context: Context, finetune_steps: int) -> dict[str, Any]:
    """Replace the network, which is on the CPU, by the pruned one, and set the plan; return the report as data."""
    found: list[nn.Module] = []

    def work() -> tuple[str, dict[str, Any], str]:
        pruned, said = _pruned(context, finetune_steps)
        found.append(pruned.module)
        return pruned.plan.to_json(), pruned.report.to_json_dict(), said

    text, report, said = context.ranks.on_main(work)
    if said:
        context.tell(said)
    plan = PrunePlan.from_json(text)
    context.module = found[0] if found else apply_plan(context.module, plan)
    # Training continues from the fitted weights; its own final weights are in a separate file.
    context.plan = replace(plan, refits=())
    return report


def _pruned(context: Context, finetune_steps: int) -> tuple[api.Pruned, str]:
    """Remove constant channels and, if the budget needs more, those that images choose; return a sentence on that."""
    setup, config = context.setup, context.config
    if not context.state.record.by_data:
        return remove_constant(context.module, setup.example_inputs, config, finetune_steps), ""
    images = _images(context)
    context.progress.note(f"choosing channels, and fitting those that stay, on {len(images)} training images")
    pruned = remove_by_data(context.module, images, config, finetune_steps, setup.goals, setup.sparsity)
    left = in_words(setup.goals, Size(pruned.report.after.params, pruned.report.after.macs), setup.full)
    chosen = f"the channels to remove were chosen, and the others fitted, on {len(images)} training images"
    return pruned, f"budget: {left} are left; {chosen}"


def _images(context: Context) -> torch.Tensor:
    """Return random training images as the network takes them, float32[N, C, H, W], on the CPU."""
    setup, config = context.setup, context.config
    count = enough_images(setup.data.image_shape)
    most = math.ceil(count / config.batch_size)
    batches = sampled_batches(setup.data.train, setup.pipeline, config.batch_size, most, config.seed)
    return torch.cat([inputs.cpu() for inputs, _ in batches])[:count]
