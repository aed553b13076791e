"""Inception-v3: Szegedy et al., arXiv:1512.00567, without the auxiliary head.

Parameter names are those of the published ImageNet weights, which were trained on 299x299 images normalised
with mean and standard deviation 0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from prunec.models.layers import ConvBn, initialise, rename_when_loading


class Step(NamedTuple):
    """A convolution of a branch; ``name`` is its module's. Stride 2 goes without padding, stride 1 keeps the size."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1

    def build(self, in_channels: int) -> ConvBn:
        vertical, horizontal = self.kernel
        padding = (vertical // 2, horizontal // 2) if self.stride == 1 else 0
        return ConvBn(in_channels, self.channels, self.kernel, stride=self.stride, padding=padding)


Branch = tuple[Step | tuple[Step, Step], ...]
"""Convolutions one after another; a pair at the end reads the same input twice, and both results are concatenated."""


class Mixed(nn.Module):
    """Branches side by side, concatenated, the pooling branch last.

    Args:
        in_channels: of the input.
        branches: of convolutions.
        pool: channels of the 1x1 convolution after 3x3 average pooling; 0 is 3x3 max pooling of stride 2 alone.
    """

    def __init__(self, in_channels: int, branches: tuple[Branch, ...], pool: int) -> None:
        super().__init__()
        self.branches = branches
        self.pools_only = pool == 0
        self.channels = pool or in_channels
        for branch in branches:
            self.channels += self._add(branch, in_channels)
        if pool:
            self.branch_pool = ConvBn(in_channels, pool, 1)

    def _add(self, branch: Branch, channels: int) -> int:
        """Make a branch's layers and return its output channels."""
        for item in branch:
            steps = (item,) if isinstance(item, Step) else item
            for step in steps:
                self.add_module(step.name, step.build(channels))
            channels = sum(step.channels for step in steps)
        return channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, in_channels, H, W] -> float32[N, channels, H', W']."""
        outputs = [self._run(branch, x) for branch in self.branches]
        if self.pools_only:
            outputs.append(F.max_pool2d(x, 3, stride=2))
        else:
            outputs.append(self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1)))
        return torch.cat(outputs, dim=1)

    def _run(self, branch: Branch, x: torch.Tensor) -> torch.Tensor:
        for item in branch:
            steps = (item,) if isinstance(item, Step) else item
            outputs = [self.get_submodule(step.name)(x) for step in steps]
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return x


def _grid35(in_channels: int, pool: int) -> Mixed:
    """Figure 5: 5x5, and 3x3 twice."""
    five = (Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5)))
    double = (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3)))
    return Mixed(in_channels, ((Step("branch1x1", 64),), five, double), pool)


def _reduce35(in_channels: int) -> Mixed:
    """Figure 10: 35x35 to 17x17."""
    double = (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3), 2))
    return Mixed(in_channels, ((Step("branch3x3", 384, (3, 3), 2),), double), 0)


def _grid17(in_channels: int, inner: int) -> Mixed:
    """Figure 6: 7x7 factorised into 1x7 and 7x1, once and twice."""
    row, column = (1, 7), (7, 1)
    single = (Step("branch7x7_1", inner), Step("branch7x7_2", inner, row), Step("branch7x7_3", 192, column))
    double = (
        Step("branch7x7dbl_1", inner),
        Step("branch7x7dbl_2", inner, column),
        Step("branch7x7dbl_3", inner, row),
        Step("branch7x7dbl_4", inner, column),
        Step("branch7x7dbl_5", 192, row),
    )
    return Mixed(in_channels, ((Step("branch1x1", 192),), single, double), 192)


def _reduce17(in_channels: int) -> Mixed:
    """17x17 to 8x8."""
    three = (Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2))
    seven = (
        Step("branch7x7x3_1", 192),
        Step("branch7x7x3_2", 192, (1, 7)),
        Step("branch7x7x3_3", 192, (7, 1)),
        Step("branch7x7x3_4", 192, (3, 3), 2),
    )
    return Mixed(in_channels, (three, seven), 0)


def _grid8(in_channels: int) -> Mixed:
    """Figure 7: the last convolution of two branches is a 1x3 beside a 3x1."""
    row, column = (1, 3), (3, 1)
    three: Branch = (
        Step("branch3x3_1", 384),
        (Step("branch3x3_2a", 384, row), Step("branch3x3_2b", 384, column)),
    )
    double: Branch = (
        Step("branch3x3dbl_1", 448),
        Step("branch3x3dbl_2", 384, (3, 3)),
        (Step("branch3x3dbl_3a", 384, row), Step("branch3x3dbl_3b", 384, column)),
    )
    return Mixed(in_channels, ((Step("branch1x1", 320),), three, double), 192)


class InceptionV3(nn.Module):
    """float32[N, 3, 299, 299] -> float32[N, num_classes]; other sizes from 75 up work too."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBn(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvBn(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvBn(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvBn(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBn(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _grid35(192, 32), _grid35(256, 64), _grid35(288, 64)
        self.Mixed_6a = _reduce35(288)
        self.Mixed_6b, self.Mixed_6c = _grid17(768, 128), _grid17(768, 160)
        self.Mixed_6d, self.Mixed_6e = _grid17(768, 160), _grid17(768, 192)
        self.Mixed_7a = _reduce17(768)
        self.Mixed_7b, self.Mixed_7c = _grid8(1280), _grid8(2048)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
        self.apply(initialise)
        # Published files hold the auxiliary head, which only training with it needs.
        rename_when_loading(self, lambda key: None if key.startswith("AuxLogits.") else key)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class scores, float32[N, num_classes]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        scores: torch.Tensor = self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return scores
