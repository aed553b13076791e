"""The blocks of published networks, each written as its authors would: what networks.py is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cbr(
    inp: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution (zero padding that keeps the size), BatchNorm, activation."""
    conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), act())


class Head(nn.Module):
    """Global pooling and a classifier."""

    def __init__(self, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


class Basic(nn.Module):
    """ResNet's basic block; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inp: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.down: nn.Module | None = None
        if stride != 1 or inp != out:
            self.down = nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.down is None else self.down(x)
        return F.relu_(y)


class OptionA(nn.Module):
    """CIFAR ResNet's block: the shortcut is sliced and padded with zero channels."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.changes = stride != 1 or inp != out
        self.pad = (out - inp) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.changes:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class InvertedResidual(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, inp: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = inp * expand
        self.body = nn.Sequential(
            cbr(inp, mid, 1, act=nn.ReLU6),
            cbr(mid, mid, 3, stride, groups=mid, act=nn.ReLU6),
            nn.Conv2d(mid, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.residual = stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)  # type: ignore[no-any-return]


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: chunk, transform one half, concatenate, shuffle."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.stride = stride
        inp = channels if stride == 2 else half
        out = channels if stride == 2 else half
        self.right = nn.Sequential(
            cbr(inp, out, 1),
            nn.Conv2d(out, out, 3, stride, 1, groups=out, bias=False),
            nn.BatchNorm2d(out),
            cbr(out, out, 1),
        )
        if stride == 2:
            depthwise = nn.Conv2d(inp, inp, 3, 2, 1, groups=inp, bias=False)
            self.left = nn.Sequential(depthwise, nn.BatchNorm2d(inp), cbr(inp, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            a, b = x.chunk(2, dim=1)
            return shuffle(torch.cat((a, self.right(b)), dim=1), 2)
        return shuffle(torch.cat((self.left(x), self.right(x)), dim=1), 2)


class DenseLayer(nn.Module):
    """DenseNet's BN-ReLU-conv, concatenated to its input."""

    def __init__(self, inp: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inp), nn.Conv2d(inp, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, y], 1)


class Inception(nn.Module):
    """GoogLeNet's four branches."""

    def __init__(self, inp: int) -> None:
        super().__init__()
        self.one = cbr(inp, 6, 1)
        self.three = nn.Sequential(cbr(inp, 4, 1), cbr(4, 8))
        self.five = nn.Sequential(cbr(inp, 4, 1), cbr(4, 6, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), cbr(inp, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.one(x), self.three(x), self.five(x), self.pool(x)]
        return torch.cat(branches, 1)


class SqueezeExcite(nn.Module):
    """A gate per channel from two linear layers on the pooled map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)
        return x * gate.expand_as(x)


class RepBlock(nn.Module):
    """RepVGG: 3x3, 1x1 and identity branches, each with a BatchNorm, summed before the activation."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.three = nn.Sequential(nn.Conv2d(inp, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.one = nn.Sequential(nn.Conv2d(inp, out, 1, bias=False), nn.BatchNorm2d(out))
        self.same = nn.BatchNorm2d(inp) if inp == out else None

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.same is None else self.same(x)
        return F.relu(self.three(x) + self.one(x) + identity)


class WeightNorm(nn.Module):
    """w = g · v / ||v||, written out with functions."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.randn(out, inp, 3, 3) / 4)
        self.g = nn.Parameter(torch.ones(out, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.g * self.v / torch.linalg.vector_norm(self.v, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class ResNeXtBlock(nn.Module):
    """A bottleneck whose middle convolution has groups."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            cbr(channels, 16, 1),
            cbr(16, 16, groups=groups),
            nn.Conv2d(16, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.add(self.body(x), x))


class ConvNeXtBlock(nn.Module):
    """Depthwise, LayerNorm over channels last, two linear layers, layer scale, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)
