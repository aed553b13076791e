"""GoogLeNet (Inception-v1) with BatchNorm: Szegedy et al., arXiv:1409.4842; BatchNorm as in arXiv:1502.03167.

Parameter names and details (the third branch has a 3x3 where the paper has a 5x5) are those of the published
ImageNet weights, so that these load. They were trained on images normalised with mean and standard deviation 0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from prunec.models.layers import ConvBn, initialise, rename_when_loading


class Widths(NamedTuple):
    """Output channels of an Inception module's convolutions; ``reduce`` is the 1x1 in front of a 3x3."""

    one: int
    reduce2: int
    three2: int
    reduce3: int
    three3: int
    pool: int

    @property
    def total(self) -> int:
        """Channels of the concatenation."""
        return self.one + self.three2 + self.three3 + self.pool

    def times(self, factor: float) -> Widths:
        """Return the widths scaled, at least 1 each."""
        return Widths(*(max(1, round(width * factor)) for width in self))


# Table 1 of the paper, by the names of the modules.
TABLE: dict[str, Widths] = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches side by side, concatenated: 1x1; 1x1, 3x3; 1x1, 3x3; max pool, 1x1."""

    def __init__(self, in_channels: int, widths: Widths) -> None:
        super().__init__()
        self.branch1 = ConvBn(in_channels, widths.one, 1)
        self.branch2 = nn.Sequential(
            ConvBn(in_channels, widths.reduce2, 1), ConvBn(widths.reduce2, widths.three2, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            ConvBn(in_channels, widths.reduce3, 1), ConvBn(widths.reduce3, widths.three3, 3, padding=1)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvBn(in_channels, widths.pool, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, in_channels, H, W] -> float32[N, widths.total, H, W]."""
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), dim=1)


class GoogLeNet(nn.Module):
    """float32[N, 3, 224, 224] -> float32[N, 1000]; other sizes from 33 up work too."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv1 = ConvBn(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = ConvBn(64, 64, 1)
        self.conv3 = ConvBn(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        channels = 192
        for name, widths in TABLE.items():
            self.add_module(f"inception{name}", Inception(channels, widths))
            channels = widths.total
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(initialise)
        # Published files hold the two auxiliary heads, which only training with them needs.
        rename_when_loading(self, lambda key: None if key.startswith(("aux1.", "aux2.")) else key)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class scores, float32[N, num_classes]."""
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(images)))))
        for name in TABLE:
            x = self.get_submodule(f"inception{name}")(x)
            if name == "3b":
                x = self.maxpool3(x)
            if name == "4e":
                x = self.maxpool4(x)
        scores: torch.Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return scores
