"""ImageNet ResNets: He et al., arXiv:1512.03385, with the stride in the 3x3 convolution of a bottleneck ("v1.5").

Parameter names are those of the published ImageNet weights. The CIFAR form is in resnet_cifar.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from prunec.models.layers import initialise


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """Return the shortcut's 1x1 convolution where the shape changes (option B)."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(_conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``width`` channels out."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, in_channels, H, W] -> float32[N, width, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; 4 · ``width`` channels out."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = self.expansion * width
        self.conv1, self.bn1 = _conv(in_channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, channels, 1), nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, in_channels, H, W] -> float32[N, 4 · width, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """float32[N, 3, H, W] -> float32[N, num_classes].

    Args:
        block: the residual block.
        blocks: how many of them at 64, 128, 256 and 512 channels.
        num_classes: outputs.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: tuple[int, int, int, int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 7, stride=2), nn.BatchNorm2d(64)
        channels = 64
        for index, count in enumerate(blocks):
            width = 64 * 2**index
            stage = nn.Sequential()
            for position in range(count):
                stage.append(block(channels, width, stride=2 if index and not position else 1))
                channels = block.expansion * width
            self.add_module(f"layer{index + 1}", stage)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class scores, float32[N, num_classes]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        for index in range(4):
            x = self.get_submodule(f"layer{index + 1}")(x)
        scores: torch.Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores
