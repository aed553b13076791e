"""Three lines in a Hugging Face Accelerate loop: train towards sparsity, prune, and export to ONNX.

Run it with `python examples/accelerate_loop.py`, or on several processes with
`accelerate launch --num_processes 2 examples/accelerate_loop.py`. The lines that prunec adds to an ordinary loop are
marked with `# prunec`. Every process reaches the same gammas, so every process prunes the same channels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import prunec
from prunec.models.digits import DigitsNet

Loader = DataLoader[tuple[torch.Tensor, ...]]


def main() -> None:
    """Train, prune, fine-tune, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rho", type=float, default=0.1, help="weight of the penalty")
    parser.add_argument("--output", type=Path, default=Path("pruned.onnx"))
    options = parser.parse_args()

    torch.manual_seed(0)
    accelerator = Accelerator()
    train, test = digits()
    example = (torch.zeros(1, 1, 32, 32),)
    net: nn.Module = DigitsNet(width=16)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer = prunec.sparsify(net, example, optimizer, rho=options.rho)  # prunec: before prepare()
    run_epochs(accelerator, net, optimizer, train, options.epochs)

    whole = accelerator.unwrap_model(net).cpu()
    pruned: nn.Module = prunec.prune_module(whole, example).module  # prunec
    fine = torch.optim.SGD(pruned.parameters(), lr=0.02, momentum=0.9)
    run_epochs(accelerator, pruned, fine, train, max(1, options.epochs // 4))

    if accelerator.is_main_process:
        small = accelerator.unwrap_model(pruned).cpu()
        prunec.export_onnx(small, example, options.output)  # prunec
        before, after = (sum(p.numel() for p in module.parameters()) for module in (whole, small))
        accelerator.print(f"parameters: {before:,} -> {after:,}")
        accelerator.print(f"accuracy:   {accuracy(small, test):.1%}")
        accelerator.print(f"wrote {options.output}")
    accelerator.end_training()


def run_epochs(
    accelerator: Accelerator, net: nn.Module, optimizer: torch.optim.Optimizer, data: Loader, epochs: int
) -> None:
    """Train as anyone would."""
    net, optimizer, data = accelerator.prepare(net, optimizer, data)
    net.train()
    for _ in range(epochs):
        for images, labels in data:
            with accelerator.accumulate(net):
                optimizer.zero_grad()
                accelerator.backward(F.cross_entropy(net(images), labels))
                optimizer.step()


def digits() -> tuple[Loader, Loader]:
    """scikit-learn's handwritten digits at 32x32, for training and for testing."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    inputs, targets = F.interpolate(pixels, size=32, mode="bilinear"), torch.tensor(labels)
    train = TensorDataset(inputs[:1400], targets[:1400])
    test = TensorDataset(inputs[1400:], targets[1400:])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=200)


@torch.no_grad()
def accuracy(net: nn.Module, data: Loader) -> float:
    """Return the share of images that are told right."""
    net.eval()
    right = [(net(images).argmax(1) == labels).float() for images, labels in data]
    return float(torch.cat(right).mean())


if __name__ == "__main__":
    main()
