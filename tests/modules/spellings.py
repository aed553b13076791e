"""Networks spelled as people spell them where it is harder to follow: the table SPELLINGS.

Owns modules whose buffers are read in the forward, whose outputs are dataclasses, and their like; those whose weights
are computed are in computed_weights.py. tests/frontends/fx/test_spellings.py runs over all of them. The common shapes
are in networks.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.blocks import Head, cbr
from modules.computed_weights import COMPUTED_WEIGHTS
from modules.networks import Net


class FrozenNorm(nn.Module):
    """torchvision's FrozenBatchNorm2d: statistics and affine parameters are buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        gains = torch.rand(channels, generator=generator) + 0.5
        self.register_buffer("weight", gains * (torch.rand(channels, generator=generator) > 0.5))
        self.register_buffer("bias", torch.rand(channels, generator=generator) - 0.5)
        self.register_buffer("running_mean", torch.rand(channels, generator=generator) - 0.5)
        self.register_buffer("running_var", torch.rand(channels, generator=generator) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            tensor.reshape(1, -1, 1, 1) for tensor in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Frozen(nn.Module):
    """Frozen normalisation, and a mask over the channels that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), FrozenNorm(16)
        self.b, self.head = cbr(16, 12), Head(12)
        self.register_buffer("mask", (torch.arange(16) % 3 != 0).float().reshape(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.relu(self.norm(self.a(x))) * self.mask))  # type: ignore[no-any-return]


class Gridded(nn.Module):
    """A tensor that the forward makes by itself, as detection heads make their grids."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Sequential(cbr(3, 8), cbr(8, 12, stride=2)), nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.stem(x))
        return y.sigmoid() * 2 + torch.arange(6).reshape(1, 6, 1, 1).float()  # type: ignore[no-any-return]


@dataclass
class Found:
    """What a network of two heads returns."""

    scores: Tensor
    extra: dict[str, Tensor]


class DataclassOut(nn.Module):
    """Outputs in a dataclass with a dict in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mask, self.head = cbr(3, 8), cbr(8, 12), nn.Conv2d(8, 1, 1), Head(12)

    def forward(self, x: Tensor) -> Found:
        y = self.a(x)
        return Found(self.head(self.b(y)), {"mask": self.mask(y)})


class Siamese(nn.Module):
    """One encoder for two images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(cbr(3, 8), cbr(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc(torch.abs(self.encoder(x) - self.encoder(y)))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Two convolutions of one weight, each with a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = cbr(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b.weight = self.a.weight
        self.norm_a, self.norm_b, self.head = nn.BatchNorm2d(8), nn.BatchNorm2d(8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.a(self.stem(x))))
        return self.head(F.relu(self.norm_b(self.b(x))))  # type: ignore[no-any-return]


class TemporalShift(nn.Module):
    """TSM: a part of the channels moves by a frame, written into slices of a fresh tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = cbr(3, 16), cbr(16, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        frames, c, h, w = y.size()
        y, part = y.view(frames // 2, 2, c, h, w), c // 8
        out = torch.zeros_like(y)
        out[:, :-1, :part] = y[:, 1:, :part]
        out[:, 1:, part : 2 * part] = y[:, :-1, part : 2 * part]
        out[:, :, 2 * part :] = y[:, :, 2 * part :]
        return self.head(self.body(out.view(frames, c, h, w)))  # type: ignore[no-any-return]


class HalfWritten(nn.Module):
    """Half of a copy's channels replaced, the other half scaled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.head = cbr(3, 8), cbr(4, 4), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.clone()
        y[:, :4] = self.part(x[:, :4])
        y[:, 4:] *= 0.5
        return self.head(y)  # type: ignore[no-any-return]


class Caching(nn.Module):
    """Keeps what it computes of its parameters in a dict while it is not trained (timm's relative position biases)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Sequential(cbr(3, 8), cbr(8, 12)), Head(12)
        self.bias, self.cache = nn.Parameter(torch.randn(12, 1, 1)), {}  # type: ignore[var-annotated]  # as people write it
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        y = self.stem(x)
        self.seen.append(y)
        self.last = y
        return self.head(y + self.cache["bias"])  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A CRNN: convolutions, then a recurrent layer along the width."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.stem = nn.Sequential(cbr(3, 8), nn.MaxPool2d((2, 1)), cbr(8, 12), nn.AdaptiveAvgPool2d((1, None)))
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        y = self.stem(x).squeeze(2)
        y = y.permute(0, 2, 1) if self.layer.batch_first else y.permute(2, 0, 1)
        out, state = self.layer(y)
        return self.head(out), state


class AskingForTypes(nn.Module):
    """A forward that looks at the type of what it computes; of torch.fx's proxies it takes the wrong branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 8), cbr(8, 12), Head(12)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.a(x)
        levels = [x] if isinstance(x, Tensor) else x
        return [self.head(self.b(level)) for level in levels]


class Unpooling(nn.Module):
    """SegNet: pools keep the places of their maxima, and unpooling puts elements back there."""

    def __init__(self, axes: int = 2, sizes: bool = False) -> None:
        super().__init__()
        conv, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
        self.layers = nn.ModuleList(
            nn.Sequential(conv(i, 8, 3, padding=1), norm(8), nn.ReLU()) for i in (3, 8, 8, 8, 8)
        )
        self.head, self.sizes = conv(8, 4, 1), sizes
        self.pool = getattr(nn, f"MaxPool{axes}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{axes}d")(2)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = self.layers
        x = a(x)
        y, first = self.pool(x)
        y = b(y)
        if not self.sizes:
            return self.head(e(self.unpool(d(c(y)), first)))  # type: ignore[no-any-return]
        z, second = self.pool(y)
        z = d(self.unpool(c(z), second, output_size=y.size()))
        return self.head(e(self.unpool(z, first, output_size=x.shape)))  # type: ignore[no-any-return]


class UnpoolingCalls(nn.Module):
    """The same with functions, over an adaptive pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = cbr(3, 8), cbr(8, 8), cbr(8, 8), cbr(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, at = F.max_pool2d(self.a(x), 2, return_indices=True)
        z, there = F.adaptive_max_pool2d(self.b(y), 3, return_indices=True)
        z = F.max_unpool2d(self.c(z), there, 3, output_size=y.shape[2:])
        return self.head(self.d(F.max_unpool2d(z + y, at, kernel_size=2)))


class Windows(nn.Module):
    """Overlapping windows of positions, by Tensor.unfold and torch.nn.functional.unfold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = cbr(3, 8), cbr(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y.unfold(2, 3, 2).unfold(3, 3, 2).contiguous()
        y = self.mid(y.amax((-1, -2)) + y.mean(-1)[..., 0])
        n, c, h, w = y.shape
        patches = F.unfold(y, 3, padding=1).view(n, c, 9, h, w)
        return self.head(patches.amax(2) - patches[:, :, 4] + y)  # type: ignore[no-any-return]


class Fourier(nn.Module):
    """Filters of frequencies: a learned one for each channel (GFNet), a 1x1 convolution over both parts (LaMa)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.mix = cbr(3, 8), nn.BatchNorm2d(8), cbr(16, 16, 1)
        self.filter, self.last, self.head = nn.Parameter(torch.randn(8, 1, 1, 2)), cbr(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        sizes = y.shape[-2:]
        z = torch.fft.rfft2(y, norm="ortho") * torch.view_as_complex(self.filter)
        y = F.relu(self.norm(torch.fft.irfft2(z, s=sizes, norm="ortho")))
        z = torch.fft.rfftn(y, dim=(-2, -1), norm="ortho")
        z = torch.stack((z.real, z.imag), dim=-1).permute(0, 1, 4, 2, 3).contiguous()
        z = self.mix(z.flatten(1, 2)).unflatten(1, (-1, 2))
        z = torch.complex(z[:, :, 0].contiguous(), z[:, :, 1].contiguous())
        y = torch.fft.irfftn(z, s=sizes, dim=(-2, -1), norm="ortho") + y
        return self.head(self.last(y))  # type: ignore[no-any-return]


class Scattered(nn.Module):
    """Rows and columns of a map written out of place, and channels of one map into another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.mid, self.head = cbr(3, 8), cbr(3, 3), cbr(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y, side = self.stem(x), self.side(x)
        y = torch.slice_scatter(y, side, dim=1, start=2, end=5)
        y = torch.select_scatter(y, src=side[:, 1], dim=1, index=6)
        y = self.mid(y)
        y = torch.select_scatter(y, y.mean(2), 2, 0)
        return self.head(y.slice_scatter(y[..., :2] * 2, dim=3, start=1, end=3))  # type: ignore[no-any-return]


class Asserting(nn.Module):
    """CRNN: a check of sizes in front of a recurrent layer; one that torch.fx cannot see through needs torch.export."""

    def __init__(self, cell: nn.Module, raises: bool = False) -> None:
        super().__init__()
        self.stem, self.cell, self.raises = cbr(3, 12), cell, raises
        self.head = nn.Linear(cell.hidden_size * (2 if cell.bidirectional else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(self.stem(x), (1, None))
        _, c, h, w = y.size()
        assert h == 1, "the height must be 1"
        assert 11 < c < 13
        if self.raises and w < 2:
            raise ValueError("too narrow")
        y, _ = self.cell(y.squeeze(2).permute(2, 0, 1))
        return self.head(y)  # type: ignore[no-any-return]


SPELLINGS: Mapping[str, Net] = MappingProxyType(
    {
        **COMPUTED_WEIGHTS,
        "frozen": Net(Frozen),
        "gridded": Net(Gridded),
        "dataclass": Net(DataclassOut),
        "siamese": Net(Siamese, ((3, 16, 16), (3, 16, 16))),
        "tied": Net(Tied),
        "asking_for_types": Net(AskingForTypes),
        "caching": Net(Caching),
        "lstm": Net(lambda: Recurrent(nn.LSTM(12, 7, num_layers=2, bidirectional=True, batch_first=True))),
        "lstm_without_bias": Net(lambda: Recurrent(nn.LSTM(12, 5, bias=False))),
        "gru": Net(lambda: Recurrent(nn.GRU(12, 7))),
        "temporal_shift": Net(TemporalShift),
        "half_written": Net(HalfWritten),
        "unpooling": Net(Unpooling),
        "unpooling_to_sizes": Net(lambda: Unpooling(sizes=True), ((3, 18, 18),)),
        "unpooling_1d": Net(lambda: Unpooling(1), ((3, 16),)),
        "unpooling_3d": Net(lambda: Unpooling(3), ((3, 8, 8, 8),)),
        "unpooling_calls": Net(UnpoolingCalls),
        "windows": Net(Windows),
        "fourier": Net(Fourier),
        "scattered": Net(Scattered),
        "asserting_lstm": Net(lambda: Asserting(nn.LSTM(12, 7, bidirectional=True))),
        "asserting_gru": Net(lambda: Asserting(nn.GRU(12, 7, num_layers=2), raises=True)),
    }
)
