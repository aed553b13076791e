"""Three lines in a plain PyTorch loop: train towards sparsity, prune, and export to ONNX.

Run it with `python examples/plain_pytorch.py`; it takes some fifteen seconds on one core. The lines that
prunec adds to an ordinary loop are marked with `# prunec`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import prunec


class Net(nn.Module):
    """conv-BN-ReLU three times, with a residual sum in the middle, for 8x8 digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = (
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, 1, 8, 8] -> float32[N, 10]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


def main() -> None:
    """Train, prune, fine-tune, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--rho", type=float, default=0.003, help="weight of the penalty")
    parser.add_argument("--output", type=Path, default=Path("pruned.onnx"))
    options = parser.parse_args()

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels)
    train, test = slice(0, 1400), slice(1400, None)

    net = Net()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer = prunec.sparsify(net, (inputs[:2],), optimizer, rho=options.rho)  # prunec
    run_epochs(net, optimizer, inputs[train], targets[train], options.epochs)

    pruned = prunec.prune_module(net, (inputs[:2],)).module  # prunec
    fine = torch.optim.SGD(pruned.parameters(), lr=0.02, momentum=0.9)
    run_epochs(pruned, fine, inputs[train], targets[train], max(1, options.epochs // 4))

    prunec.export_onnx(pruned, (inputs[:1],), options.output)  # prunec
    before, after = (sum(p.numel() for p in module.parameters()) for module in (net, pruned))
    print(f"parameters: {before:,} -> {after:,}")
    print(f"accuracy:   {accuracy(pruned, inputs[test], targets[test]):.1%} on {len(targets[test])} test images")
    print(f"wrote {options.output}")


def run_epochs(net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Train as anyone would."""
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of images that are told right."""
    return float((net.eval()(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    main()
