"""DenseNets with bottlenecks and compression (BC): Huang et al., arXiv:1608.06993.

``DenseNet`` is the ImageNet form (7x7 stem, four blocks) and, with ``small_images``, the CIFAR form (3x3 stem,
three blocks). Parameter names are those of the published ImageNet weights; their older spelling
(``norm.1`` for ``norm1``) loads too.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import functional as F

from prunec.models.layers import initialise, rename_when_loading

_BOTTLENECK = 4
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


class DenseLayer(nn.Module):
    """BN-ReLU-1x1-BN-ReLU-3x3, its output appended to its input: C -> C + growth channels."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        inner = _BOTTLENECK * growth
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, C, H, W] -> float32[N, C + growth, H, W]."""
        hidden = self.conv1(F.relu(self.norm1(x)))
        return torch.cat((x, self.conv2(F.relu(self.norm2(hidden)))), dim=1)


class DenseBlock(nn.Sequential):
    """``layers`` dense layers: C -> C + layers · growth channels."""

    def __init__(self, in_channels: int, layers: int, growth: int) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"denselayer{index + 1}", DenseLayer(in_channels + index * growth, growth))


class Transition(nn.Module):
    """BN-ReLU-1x1 to fewer channels, then 2x2 average pooling."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, in_channels, H, W] -> float32[N, channels, H/2, W/2]."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """float32[N, 3, H, W] -> float32[N, num_classes].

    Args:
        blocks: dense layers of each block.
        growth: k, the channels that each layer adds.
        num_classes: outputs.
        small_images: the CIFAR form: a 3x3 stem at full resolution instead of 7x7, stride 2 and max pooling.
    """

    def __init__(
        self, blocks: tuple[int, ...], growth: int, num_classes: int = 1000, *, small_images: bool = False
    ) -> None:
        super().__init__()
        channels = 2 * growth
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.features = nn.Sequential()
        self.features.add_module(
            "conv0", nn.Conv2d(3, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        )
        if not small_images:
            self.features.add_module("norm0", nn.BatchNorm2d(channels))
            self.features.add_module("relu0", nn.ReLU(inplace=True))
            self.features.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))
        for index, layers in enumerate(blocks, start=1):
            self.features.add_module(f"denseblock{index}", DenseBlock(channels, layers, growth))
            channels += layers * growth
            if index < len(blocks):
                self.features.add_module(f"transition{index}", Transition(channels, channels // 2))
                channels //= 2
        self.features.add_module(f"norm{len(blocks) + 1}", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        self.apply(initialise)
        rename_when_loading(self, lambda key: _OLD_NAME.sub(r"\1\2.", key))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class scores, float32[N, num_classes]."""
        x = F.adaptive_avg_pool2d(F.relu(self.features(images)), 1).flatten(1)
        scores: torch.Tensor = self.classifier(x)
        return scores
