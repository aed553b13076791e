"""MobileNetV2: Sandler et al., arXiv:1801.04381. Parameter names are those of the published ImageNet weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from prunec.models.layers import initialise

# Table 2 of the paper: expansion, output channels, blocks, stride of the first.
TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvBnRelu6(nn.Sequential):
    """A convolution without bias, BatchNorm, ReLU6."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(ConvBnRelu6(in_channels, inner, 1))
        self.conv.append(ConvBnRelu6(inner, inner, 3, stride, groups=inner))
        self.conv.append(nn.Conv2d(inner, channels, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, in_channels, H, W] -> float32[N, channels, H/stride, W/stride]."""
        out: torch.Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """float32[N, 3, H, W] -> float32[N, num_classes], at width 1."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        channels = 32
        self.features = nn.Sequential(ConvBnRelu6(3, channels, 3, stride=2))
        for expansion, width, blocks, stride in TABLE:
            for index in range(blocks):
                self.features.append(InvertedResidual(channels, width, expansion, 1 if index else stride))
                channels = width
        self.features.append(ConvBnRelu6(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))
        self.apply(initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class scores, float32[N, num_classes]."""
        x = F.adaptive_avg_pool2d(self.features(images), 1).flatten(1)
        scores: torch.Tensor = self.classifier(x)
        return scores
