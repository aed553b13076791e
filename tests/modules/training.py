"""Small networks with BatchNorm for the training tests, coupled in every way that gammas care about."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def conv_bn(in_channels: int, channels: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    )


class Chain(nn.Module):
    """conv-BN-ReLU-pool-conv-BN-ReLU-flatten-linear on 8x8 images: what the paper's formulas are written for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 4), conv_bn(4, 6)
        self.head = nn.Linear(6 * 4 * 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        scores: torch.Tensor = self.head(F.relu(self.second(x)).flatten(1))
        return scores


class ResidualConcat(nn.Module):
    """A residual stream, then a concat of two layers, with dropout: the network of the run tests."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 8)
        self.left, self.right = conv_bn(8, 6), conv_bn(8, 4, 1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        x = torch.cat((F.relu(self.left(x)), F.leaky_relu(self.right(x), 0.1)), dim=1)
        scores: torch.Tensor = self.head(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return scores


class BareShortcut(nn.Module):
    """A sum of a convolution with BatchNorm and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.bare, self.head = conv_bn(3, 4), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(F.relu(self.normed(x) + self.bare(x)))
        return out


class Dense(nn.Module):
    """Pre-activation BatchNorms over a growing concat; the stem's own BatchNorm reaches BatchNorms only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(7), nn.Conv2d(7, 3, 3, padding=1, bias=False)
        self.norm3, self.head = nn.BatchNorm2d(10), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat((x, self.conv1(F.relu(self.norm1(x)))), dim=1)
        x = torch.cat((x, self.conv2(F.relu(self.norm2(x)))), dim=1)
        scores: torch.Tensor = self.head(F.relu(self.norm3(x)).mean((2, 3)))
        return scores


class Inverted(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection, with ReLU6 at the end of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4)
        self.expand, self.depthwise, self.project = conv_bn(4, 8, 1), conv_bn(8, 8, groups=8), conv_bn(8, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        hidden = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        scores: torch.Tensor = self.head((x + self.project(hidden)).mean((2, 3)))
        return scores


class Grouped(nn.Module):
    """A grouped convolution, a transposed one, a pad of the channel axis, and a squeeze-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = conv_bn(3, 6), conv_bn(6, 8, groups=2)
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6)
        self.wide = conv_bn(6, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = F.relu(self.up_norm(self.up(x)))
        x = F.relu(self.wide(x) + F.pad(x, (0, 0, 0, 0, 1, 1)))
        scores: torch.Tensor = self.head(x).mean((2, 3))
        return scores


class Curved(nn.Module):
    """A sigmoid between one BatchNorm and its reader, a ReLU between the next pair."""

    def __init__(self) -> None:
        super().__init__()
        self.bent, self.straight = conv_bn(3, 4), conv_bn(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(self.bent(x))
        scores: torch.Tensor = self.head(F.relu(self.straight(x)).mean((2, 3)))
        return scores


class Masks(nn.Module):
    """Two convolutions of stride 2, one at their resolution and a skip: mask logits at the images' size."""

    def __init__(self, num_classes: int = 1) -> None:
        super().__init__()
        self.fine, self.coarse, self.inner = conv_bn(3, 12), conv_bn(12, 24), conv_bn(24, 24)
        self.merge = conv_bn(36, 16)
        self.head = nn.Conv2d(16, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = F.relu(self.fine(F.avg_pool2d(x, 2)))
        coarse = F.relu(self.inner(F.relu(self.coarse(F.max_pool2d(fine, 2)))))
        x = torch.cat((fine, F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)), dim=1)
        logits: torch.Tensor = self.head(F.relu(self.merge(x)))
        return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)


def trained_like(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm gammas, betas and statistics as training leaves them, and put it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(0, 0.3, generator=generator)
                norm.running_mean.normal_(0, 0.3, generator=generator)
                norm.running_var.uniform_(0.5, 2, generator=generator)
    return module.eval()


def tiny() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """For ``--model``: a network and its example input."""
    return ResidualConcat(), (torch.zeros(1, 3, 8, 8),)


def masks() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """For ``--model``: a segmentation network and its example input."""
    return Masks(), (torch.zeros(1, 3, 32, 32),)


def three_masks() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """For ``--model``: the same with three classes."""
    return Masks(3), (torch.zeros(1, 3, 32, 32),)


def tiny_digits() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """For ``--model``: the same for scikit-learn's digits, without chance in it."""
    module = ResidualConcat()
    module.head = nn.Linear(10, 10)
    module.dropout.p = 0.0
    return module, (torch.zeros(1, 3, 8, 8),)


def without_norms() -> nn.Module:
    """For ``--model``: a network that ISTA has no hold on."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class OnlyEvaluates(ResidualConcat):
    """Fails where nobody looks before the first step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("this network was made for inference")
        scores: torch.Tensor = super().forward(x)
        return scores


def only_evaluates() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """For ``--model``: a network that does not train."""
    return OnlyEvaluates(), (torch.zeros(1, 3, 8, 8),)


def normed_vectors() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """For ``--model``: a BatchNorm that sees one value per image."""
    module = ResidualConcat()
    module.dropout = nn.BatchNorm1d(10)  # type: ignore[assignment]
    return module, (torch.zeros(1, 3, 8, 8),)


def not_finite() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """For ``--model``: a weight that is no number."""
    module = ResidualConcat()
    nn.init.constant_(module.head.bias, float("nan"))
    return module, (torch.zeros(1, 3, 8, 8),)


def frozen_gammas() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """For ``--model``: nothing that ISTA may move."""
    module = ResidualConcat()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.requires_grad_(False)
    return module, (torch.zeros(1, 3, 8, 8),)


def raising() -> nn.Module:
    """For ``--model``: a factory that fails."""
    raise ValueError("no such backbone")
