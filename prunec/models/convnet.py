"""ConvNet: the CIFAR-10 network of Ye, Lu, Lin, Wang, ICLR 2018, section 4.1."""

from __future__ import annotations

import torch
from torch import nn


def _stage(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ]


class ConvNet(nn.Module):
    """5x5x96, pool, 5x5x192, pool, 3x3x192, pool, 4x4 fully connected 384, 10.

    float32[N, 3, 32, 32] -> float32[N, 10]. Every layer, the last one too, is followed by BatchNorm
    and has no bias: with 4 numbers per BatchNorm channel that is the paper's 1,986,760 parameters, and
    the same rule gives its pruned counts (309,655 for 53-86-67-128).
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(*_stage(3, 96, 5), *_stage(96, 192, 5), *_stage(192, 192, 3))
        # The fully connected layer is a convolution over the whole 4x4 map, as the paper's name "4x4 fc" says.
        self.fc1 = nn.Conv2d(192, 384, 4, bias=False)
        self.bn1 = nn.BatchNorm2d(384)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(384, num_classes, bias=False)
        self.bn2 = nn.BatchNorm1d(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class scores, float32[N, num_classes]."""
        hidden = self.relu(self.bn1(self.fc1(self.features(images))))
        scores: torch.Tensor = self.bn2(self.fc2(hidden.flatten(1)))
        return scores
