"""What a single cut and fine-tuning come to: the baseline of ``train-prune`` from weights to a budget.

The network loses its lowest-scoring channels at once, as ``prunec prune --criterion`` has it, and is then trained with
SGD, a cosine from 0.02 to zero, on the batches of the preset ``pretrained``. A run of train-prune with as many steps
in all is what to compare it with.

    OMP_NUM_THREADS=1 python benchmarks/one_cut.py --weights W.safetensors --data CIFAR_FOLDER --steps 2400
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from torch import nn

import prunec
from prunec.training.learning.ranks import Alone
from prunec.training.run.evaluate import evaluate
from prunec.training.settings.presets import make_config
from prunec.training.settings.setup import Setup, prepare

LR = 0.02


def score(module: nn.Module, setup: Setup) -> str:
    """Return the network's score on the test images, in words."""
    data = setup.data
    found = evaluate(module.eval(), data.test, setup.pipeline, setup.objective, data.image_shape, Alone())
    return ", ".join(f"{name} {value:.2%}" for name, value in found.items())


def fine_tune(module: nn.Module, setup: Setup, steps: int) -> None:
    """Train in place: SGD with momentum, the learning rate falling along a cosine."""
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)
    module.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 + math.cos(math.pi * step / steps)) / 2
        inputs, targets = setup.batches.at(step)
        optimizer.zero_grad()
        setup.objective.loss(setup.objective.logits(module(inputs)), targets).backward()
        optimizer.step()


def main() -> None:
    """Cut once, fine-tune, and print the score before and after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--weights", required=True, help="a state dict, .safetensors")
    parser.add_argument("--data", required=True, help="what train-prune takes")
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--target-macs", type=float, default=0.5, help="share of the MACs that stays")
    parser.add_argument("--steps", type=int, default=2400, help="of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("arch", "weights", "data", "batch_size", "seed", "steps")}
    with tempfile.TemporaryDirectory() as folder:
        setup = prepare(make_config(str(Path(folder) / "run"), preset="pretrained", device="cpu", **given), Alone())
    module = setup.module.eval()
    print(f"before: {score(module, setup)}")
    pruned = prunec.prune_module(
        module, setup.example_inputs, criterion=options.criterion, target_macs=options.target_macs
    )
    report = pruned.report
    print(f"MACs left: {report.after.macs / report.before.macs:.1%}, after the cut: {score(pruned.module, setup)}")
    fine_tune(pruned.module, setup, options.steps)
    print(f"after {options.steps} steps: {score(pruned.module, setup)}")


if __name__ == "__main__":
    main()
