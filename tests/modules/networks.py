"""Small networks of every shape that people write: the table NETWORKS, and how to silence their channels.

Owns the networks that tests/pipeline/, test_golden.py and the frontend's and backend's tests run over. Each is written
as its authors would, so that the spellings (module, function, method, slice, in-place) differ. Their blocks are in
blocks.py, random networks in strategies.py, graphs without weights in graphs/tiny.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.blocks import (
    Basic,
    ConvNeXtBlock,
    DenseLayer,
    Head,
    Inception,
    InvertedResidual,
    OptionA,
    RepBlock,
    ResNeXtBlock,
    ShuffleUnit,
    SqueezeExcite,
    WeightNorm,
    cbr,
    shuffle,
)


def resnet20() -> nn.Module:
    stages = [OptionA(8, 8, 1) for _ in range(3)]
    stages += [OptionA(8, 16, 2), OptionA(16, 16, 1), OptionA(16, 16, 1)]
    stages += [OptionA(16, 32, 2), OptionA(32, 32, 1), OptionA(32, 32, 1)]
    return nn.Sequential(cbr(3, 8), *stages, Head(32))


def resnet18() -> nn.Module:
    blocks = [Basic(8, 8), Basic(8, 8), Basic(8, 16, 2), Basic(16, 16), Basic(16, 24, 2), Basic(24, 24)]
    return nn.Sequential(cbr(3, 8, 5, 2), nn.MaxPool2d(3, 2, 1), *blocks, Head(24))


def densenet() -> nn.Module:
    first = [DenseLayer(8 + 4 * i, 4) for i in range(3)]
    second = [DenseLayer(10 + 4 * i, 4) for i in range(3)]
    transition = [nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2)]
    return nn.Sequential(cbr(3, 8), *first, *transition, *second, nn.BatchNorm2d(22), nn.ReLU(), Head(22))


def googlenet() -> nn.Module:
    return nn.Sequential(cbr(3, 8), nn.MaxPool2d(2), Inception(8), Inception(24), Head(24))


def mobilenetv2() -> nn.Module:
    blocks = [
        InvertedResidual(*c) for c in ((8, 8, 1, 1), (8, 12, 2, 2), (12, 12, 1, 3), (12, 16, 2, 3), (16, 16, 1, 3))
    ]
    return nn.Sequential(cbr(3, 8, act=nn.ReLU6), *blocks, cbr(16, 32, 1, act=nn.ReLU6), nn.Dropout(0.2), Head(32))


def shufflenetv2() -> nn.Module:
    units = [ShuffleUnit(8, 2), ShuffleUnit(16, 1), ShuffleUnit(16, 1), ShuffleUnit(16, 2), ShuffleUnit(32, 1)]
    return nn.Sequential(cbr(3, 8), *units, cbr(32, 24, 1), Head(24))


class UNet(nn.Module):
    """Down, up with transposed convolutions, skips by concat."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = cbr(3, 8), cbr(8, 12), cbr(12, 16)
        self.up1, self.up2 = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.norm1, self.norm2 = nn.BatchNorm2d(12), nn.BatchNorm2d(8)
        self.merge1, self.merge2 = cbr(24, 12), cbr(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.middle(F.max_pool2d(b, 2))
        y = self.merge1(torch.cat([b, F.relu(self.norm1(self.up1(y)))], dim=1))
        y = self.merge2(torch.cat([a, F.relu(self.norm2(self.up2(y)))], dim=1))
        return self.head(y)  # type: ignore[no-any-return]


class SharedModule(nn.Module):
    """The same convolution and norm run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = cbr(3, 8), cbr(8, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(self.stem(x))
        return self.head(self.shared(F.max_pool2d(y, 2)))  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    """Two images in; a dict with a tuple out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = cbr(3, 8), cbr(3, 8)
        self.body = cbr(16, 12)
        self.mask, self.head = nn.Conv2d(12, 2, 1), Head(12)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        z = self.body(torch.cat([self.left(x), self.right(y)], dim=1))
        return {"mask": self.mask(z), "scores": (self.head(z), self.head(F.relu(-z)))}


def flatten_head() -> nn.Module:
    return nn.Sequential(
        cbr(3, 8, stride=2), cbr(8, 12, stride=2), nn.Flatten(), nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 10)
    )


class Attention(nn.Module):
    """q, k and v from one linear layer, heads by reshape, softmax written out."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.stem = cbr(3, channels, stride=2)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        b, n, c = tokens.shape
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2).reshape(b, n, c)
        return self.head((tokens + self.proj(y)).mean(dim=1))  # type: ignore[no-any-return]


class Slices(nn.Module):
    """Half of the channels are transformed: slices by index, split with sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.tail = cbr(3, 12), cbr(8, 8), cbr(5, 6)
        self.head = Head(4 + 8 + 3 + 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        kept, worked = y[:, :4], y[:, 4:]
        worked = self.part(worked)
        a, b = torch.split(torch.relu(worked), [3, 5], dim=1)
        return self.head(torch.cat([kept, worked, a, self.tail(b)], 1))  # type: ignore[no-any-return]


class LayerScaleNet(nn.Module):
    """A learned factor per channel on a residual branch, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = cbr(3, 8), nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.scale = nn.Parameter(torch.linspace(0.1, 1, 8).reshape(8, 1, 1))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(y + self.scale * self.body(y))  # type: ignore[no-any-return]


def prelu() -> nn.Module:
    norm = nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.PReLU(12))
    return nn.Sequential(cbr(3, 8), norm, nn.Conv2d(12, 8, 3, padding=1), nn.PReLU(), Head(8))


def pixel_shuffle() -> nn.Module:
    """Super-resolution: the channels that become one pixel block go together."""
    return nn.Sequential(
        cbr(3, 8), cbr(8, 16), nn.PixelShuffle(2), cbr(4, 8), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)
    )


def conv1d() -> nn.Module:
    first = [nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)]
    second = [nn.Conv1d(8, 12, 3, padding=1, bias=False), nn.BatchNorm1d(12), nn.SiLU(), nn.AdaptiveAvgPool1d(1)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(12, 5))


def conv3d() -> nn.Module:
    first = [nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2)]
    second = [nn.Conv3d(6, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(8, 5))


class ExportOnly(nn.Module):
    """Control flow on the number of channels: torch.fx's proxies cannot branch, torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = cbr(3, 8), cbr(8, 12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.shape[1] % 2 == 0:
            y = F.max_pool2d(shuffle(y, 2), 2)
        return self.head(self.second(y))  # type: ignore[no-any-return]


class OpaqueLeaf(nn.Module):
    """nn.MultiheadAttention with a key of zeros added: prunec does not look inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = nn.Sequential(cbr(3, 12, stride=2), cbr(12, 12)), nn.Conv2d(12, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(self.stem(x)).flatten(2).transpose(1, 2)
        y, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.fc(y.mean(1))  # type: ignore[no-any-return]


class InPlace(nn.Module):
    """In-place activations, additions and a write into a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), cbr(8, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.b(self.a(x)))
        z = self.c(y)
        z += y
        z[:, :2] = 0.5
        return self.head(z.mul_(2.0))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Net:
    """How to make a network and feed it.

    Args:
        make: builds it with PyTorch's default initialisation.
        shapes: the inputs, without batch.
        any_size: other image sizes work too.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 16, 16),)
    any_size: bool = True

    def inputs(self, batch: int = 2, grow: int = 0, seed: int = 1) -> tuple[Tensor, ...]:
        """Return random inputs, ``grow`` pixels larger than the table's."""
        generator = torch.Generator().manual_seed(seed)
        sizes = [(batch, shape[0], *(size + grow for size in shape[1:])) for shape in self.shapes]
        return tuple(torch.randn(size, generator=generator) for size in sizes)


def padded_in_front() -> nn.Module:
    """Padding by modules of its own, uneven at stride 2, as ports of TensorFlow networks have it."""
    return nn.Sequential(
        cbr(3, 8),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(8, 10, 3, 2),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.ZeroPad2d(1),
        nn.Conv2d(10, 10, 3, groups=10),
        Head(10),
    )


NETWORKS: Mapping[str, Net] = MappingProxyType(
    {
        "resnet20": Net(resnet20),
        "resnet18": Net(resnet18, ((3, 32, 32),)),
        "densenet": Net(densenet),
        "googlenet": Net(googlenet),
        "mobilenetv2": Net(mobilenetv2),
        "shufflenetv2": Net(shufflenetv2),
        "unet": Net(UNet),
        "squeeze_excite": Net(lambda: nn.Sequential(cbr(3, 8), cbr(8, 12), SqueezeExcite(12), cbr(12, 8), Head(8))),
        "repvgg": Net(lambda: nn.Sequential(RepBlock(3, 8), RepBlock(8, 8), RepBlock(8, 12), Head(12))),
        "weight_norm": Net(
            lambda: nn.Sequential(
                WeightNorm(3, 8), nn.BatchNorm2d(8), nn.ReLU(), WeightNorm(8, 6), nn.BatchNorm2d(6), nn.ReLU(), Head(6)
            )
        ),
        "shared_module": Net(SharedModule),
        "two_inputs": Net(TwoInputs, ((3, 16, 16), (3, 16, 16))),
        "flatten_head": Net(flatten_head, any_size=False),
        "resnext": Net(lambda: nn.Sequential(cbr(3, 12), ResNeXtBlock(12, 4), ResNeXtBlock(12, 4), Head(12))),
        "convnext": Net(lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8), ConvNeXtBlock(8), Head(8))),
        "attention": Net(lambda: Attention(12, 3)),
        "slices": Net(Slices),
        "layer_scale": Net(LayerScaleNet),
        "prelu": Net(prelu),
        "pixel_shuffle": Net(pixel_shuffle),
        "conv1d": Net(conv1d, ((3, 32),)),
        "conv3d": Net(conv3d, ((3, 8, 8, 8),)),
        "export_only": Net(ExportOnly),
        "opaque_leaf": Net(OpaqueLeaf),
        "in_place": Net(InPlace),
        "padded_in_front": Net(padded_in_front),
    }
)


CONSTANT_CHANNEL_NETWORKS = (
    "resnet20", "resnet18", "densenet", "googlenet", "mobilenetv2", "shufflenetv2", "unet", "padded_in_front",
)  # fmt: skip
"""Networks of which every kind of convolution must lose channels when gammas are zero."""


Norm = nn.modules.batchnorm._BatchNorm


def silence(net: nn.Module, fraction: float = 0.5, seed: int = 0) -> nn.Module:
    """Give every BatchNorm random statistics and betas, and set a random ``fraction`` of its gammas to zero.

    Betas are left as drawn: a channel with gamma 0 is constant, and rarely zero. Returns ``net``, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, Norm) and module.running_mean is not None and module.running_var is not None:
                size = module.num_features
                module.weight.copy_((draw(size) + 0.5) * (draw(size) >= fraction))
                module.bias.copy_(draw(size) * 1.2 - 0.6)
                module.running_mean.copy_(draw(size) * 0.4 - 0.2)
                module.running_var.copy_(draw(size) + 0.5)
    return net.eval()


def make(name: str, fraction: float = 0.5, seed: int = 0) -> nn.Module:
    """Return a network of the table with ``fraction`` of its gammas zero, in eval mode."""
    torch.manual_seed(seed)
    return silence(NETWORKS[name].make(), fraction, seed)
