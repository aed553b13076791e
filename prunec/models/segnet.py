"""SegNet: foreground segmentation with two branches, after section 4.4 of the ISTA paper (arXiv:1802.00124).

The paper gives the idea and the size (an Inception branch locates the object, a DenseNet branch refines its
boundary, their features are concatenated and upsampled; about 1.0e7 parameters), not the layers. These are ours:
GoogLeNet's Inception modules behind a cheaper stem down to 1/32 of the resolution, and a DenseNet-BC whose three
blocks work at 1/4, 1/8 and 1/16, where boundaries are still visible.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from prunec.models.densenet import DenseBlock, Transition
from prunec.models.googlenet import TABLE, Inception
from prunec.models.layers import ConvBn, initialise

_DENSE_BLOCKS = ((4, 16), (8, 24), (24, 32))


def _stem(channels: int) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2: 1/4 of the resolution at a seventh of the cost of a 7x7 and a 3x3."""
    return nn.Sequential(
        ConvBn(3, channels // 2, 3, stride=2, padding=1), ConvBn(channels // 2, channels, 3, stride=2, padding=1)
    )


class InceptionBranch(nn.Module):
    """Locate: float32[N, 3, H, W] -> float32[N, ``channels``, H/32, W/32]."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = 2 * _scaled(32, width)
        self.stem = _stem(channels)
        for name, widths in TABLE.items():
            scaled = widths.times(width)
            self.add_module(f"inception{name}", Inception(channels, scaled))
            channels = scaled.total
        self.channels = channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the coarse features."""
        x: torch.Tensor = self.stem(images)
        for name in TABLE:
            if name in ("3a", "4a", "5a"):
                x = F.max_pool2d(x, 3, stride=2, padding=1)
            x = self.get_submodule(f"inception{name}")(x)
        return x


class DenseBranch(nn.Module):
    """Refine: float32[N, 3, H, W] -> features of ``channels`` at 1/4, 1/8 and 1/16 of the resolution."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = 2 * _scaled(32, width)
        self.stem = _stem(channels)
        outputs = []
        for index, (layers, growth) in enumerate(_DENSE_BLOCKS, start=1):
            self.add_module(f"denseblock{index}", DenseBlock(channels, layers, _scaled(growth, width)))
            channels += layers * _scaled(growth, width)
            self.add_module(f"norm{index}", nn.BatchNorm2d(channels))
            outputs.append(channels)
            if index < len(_DENSE_BLOCKS):
                self.add_module(f"transition{index}", Transition(channels, channels // 2))
                channels //= 2
        self.channels = tuple(outputs)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the features, finest first."""
        x = self.stem(images)
        features = []
        for index in range(1, len(_DENSE_BLOCKS) + 1):
            x = self.get_submodule(f"denseblock{index}")(x)
            # As a dense layer would: normed first, so that the BatchNorm decides for this reader alone.
            features.append(F.relu(self.get_submodule(f"norm{index}")(x)))
            if index < len(_DENSE_BLOCKS):
                x = self.get_submodule(f"transition{index}")(x)
        quarter, eighth, sixteenth = features
        return quarter, eighth, sixteenth


class SegNet(nn.Module):
    """float32[N, 3, H, W] -> mask logits float32[N, 1, H, W]; above 0 is foreground. H and W are multiples of 32.

    Args:
        width: factor on every layer's channels; 1 is the paper's size, 0.25 trains on a CPU in minutes.
        num_classes: channels of the logits; 1 is foreground against background.
    """

    def __init__(self, width: float = 1.0, num_classes: int = 1) -> None:
        super().__init__()
        self.locate = InceptionBranch(width)
        self.refine = DenseBranch(width)
        fine, middle, coarse = self.refine.channels
        wide, narrow = _scaled(320, width), _scaled(48, width)
        self.merge = ConvBn(self.locate.channels + coarse, wide, 1)
        self.sixteenth = ConvBn(wide, wide, 3, padding=1)
        self.eighth = ConvBn(wide + middle, narrow, 3, padding=1)
        self.quarter = ConvBn(narrow + fine, narrow, 3, padding=1)
        self.mask = nn.Conv2d(narrow, num_classes, 1)
        self.apply(initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of the foreground, at the images' size."""
        quarter, eighth, sixteenth = self.refine(images)
        x = self.sixteenth(self.merge(torch.cat((_upsample(self.locate(images), 2), sixteenth), dim=1)))
        x = self.eighth(torch.cat((_upsample(x, 2), eighth), dim=1))
        x = self.quarter(torch.cat((_upsample(x, 2), quarter), dim=1))
        return _upsample(self.mask(x), 4)


def _upsample(x: torch.Tensor, factor: int) -> torch.Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))
