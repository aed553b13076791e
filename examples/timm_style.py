"""Three lines in a loop in timm's style: its network, optimiser factory, warm-up and cosine schedule, and EMA.

Run it with `python examples/timm_style.py`. The lines that prunec adds to an ordinary loop are marked with `# prunec`.
An average of weights never reaches zero exactly, so the network itself is pruned, not its EMA; the EMA goes on from
the pruned network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from sklearn.datasets import load_digits
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F

import prunec


def main() -> None:
    """Train, prune, fine-tune, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="test_resnet", help="any convolutional network of timm with BatchNorms")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--rho", type=float, default=0.03, help="weight of the penalty")
    parser.add_argument("--output", type=Path, default=Path("pruned.onnx"))
    options = parser.parse_args()

    torch.manual_seed(0)
    inputs, targets = digits()
    train, test = slice(0, 1400), slice(1400, None)
    example = (inputs[:2],)

    net = timm.create_model(options.model, num_classes=10, in_chans=1)
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer = prunec.sparsify(net, example, optimizer, rho=options.rho)  # prunec: before the scheduler
    run_epochs(net, optimizer, inputs[train], targets[train], options.epochs)

    pruned = prunec.prune_module(net, example).module  # prunec
    fine = create_optimizer_v2(pruned, opt="sgd", lr=0.02, momentum=0.9, weight_decay=5e-4)
    ema = run_epochs(pruned, fine, inputs[train], targets[train], max(2, options.epochs // 4))

    prunec.export_onnx(ema, example, options.output)  # prunec
    before, after = (sum(p.numel() for p in module.parameters()) for module in (net, ema))
    print(f"parameters: {before:,} -> {after:,}")
    print(f"accuracy:   {accuracy(ema, inputs[test], targets[test]):.1%} on {len(targets[test])} test images")
    print(f"wrote {options.output}")


def run_epochs(
    net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, epochs: int
) -> nn.Module:
    """Train as timm's train.py does; return the moving average of the network."""
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs, lr_min=1e-4, warmup_t=1, warmup_lr_init=1e-3)
    ema = ModelEmaV3(net, decay=0.98)
    loss_of = LabelSmoothingCrossEntropy(0.1)
    for epoch in range(epochs):
        scheduler.step(epoch)
        net.train()
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss_of(net(x[chosen]), y[chosen]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            ema.update(net)
    average: nn.Module = ema.module
    return average


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's handwritten digits: float32[1797, 1, 32, 32], int64[1797]."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return F.interpolate(pixels, size=32, mode="bilinear"), torch.tensor(labels)


@torch.no_grad()
def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of images that are told right."""
    return float((net.eval()(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    main()
