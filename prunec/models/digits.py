"""DigitsNet: a small network for the demo whose channels are coupled in the two usual ways."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class ConvBn(nn.Sequential):
    """A convolution without bias, then BatchNorm."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
        )


class DigitsNet(nn.Module):
    """Stem, a residual block, a concat of a 3x3 and a 5x5 branch, a head. float32[N, 1, 32, 32] -> float32[N, 10].

    The residual block ties the channels of ``stem`` to those of ``residual2``; the concat puts the
    channels of two layers, offset, in front of one convolution.
    """

    def __init__(self, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.stem = ConvBn(1, width, 3, stride=2)
        self.residual1 = ConvBn(width, width, 3)
        self.residual2 = ConvBn(width, width, 3)
        self.branch3 = ConvBn(width, 2 * width, 3, stride=2)
        self.branch5 = ConvBn(width, width, 5, stride=2)
        self.merge = ConvBn(3 * width, 4 * width, 3, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class scores, float32[N, num_classes]."""
        x = F.relu(self.stem(images))
        x = F.relu(x + self.residual2(F.relu(self.residual1(x))))
        x = torch.cat((F.relu(self.branch3(x)), F.relu(self.branch5(x))), dim=1)
        x = F.relu(self.merge(x))
        scores: torch.Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores
