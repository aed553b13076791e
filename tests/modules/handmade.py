"""Movements of channels that people write by hand, for random networks: the table BY_HAND, and weights read twice.

Each takes a map float[N, C, H, W] and gives another. Split axes of which some positions are no channels, shuffles into
positions, rolls, repeats: what concat, reshape and transpose make of channels, in the spellings of real forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

Move = Callable[[Tensor, Tensor], Tensor]
"""(map, the network's input in the same size, or the map itself) -> map."""


@dataclass(frozen=True)
class ByHand:
    """One movement.

    Args:
        run: carries it out.
        divides: what the number of channels must be a multiple of.
        channels: the number of channels that comes out of so many.
        scale: the factor by which the map grows (2.0: twice as high and wide; 1.0: as it was).
        least: the smallest number of channels that it takes.
    """

    run: Move
    divides: int = 1
    channels: Callable[[int], int] = lambda c: c
    scale: float = 1.0
    least: int = 2

    def takes(self, channels: int, scale: int) -> bool:
        """Tell whether it fits a map of so many channels that is smaller than the input by ``scale``."""
        fits = channels % self.divides == 0 and self.least <= channels and self.channels(channels) <= 32
        return fits and (self.scale <= 1 or scale >= self.scale) and (self.scale >= 1 or scale <= 2)


def _split(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w)


def _pixels_crd(x: Tensor, _: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def _pixels_dcr(x: Tensor, _: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def _patches(x: Tensor, _: Tensor) -> Tensor:
    """Patch expanding: tokens with channels last, each becomes 2 x 2 tokens."""
    n, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1).reshape(n, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)


def _into_height_and_back(x: Tensor, _: Tensor) -> Tensor:
    """Channels become rows, are pooled there, and stay as many as they were by two neighbours side by side."""
    n, c, h, w = x.shape
    y = F.avg_pool2d(x.reshape(n, c // 2, 2 * h, w), (2, 1))
    return torch.cat([y, y], 1)


def _into_width(x: Tensor, _: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return F.max_pool2d(x.view(n, 2, c // 2, h, w).permute(0, 2, 3, 4, 1).reshape(n, c // 2, h, 2 * w), (1, 2))


def _one_dimensional(x: Tensor, _: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = x.flatten(2).view(n, c // 2, 2, h * w).transpose(2, 3).reshape(n, c // 2, 2 * h * w)
    return F.avg_pool1d(y, 2).view(n, c // 2, h, w)


def _unshuffled(x: Tensor, _: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def _two_levels(x: Tensor, _: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, 2, c // 4, h, w).transpose(2, 3).reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _beside(x: Tensor, side: Tensor) -> Tensor:
    """One or two channels of the input in front, so that a split axis begins with what is no channel."""
    return _split(torch.cat([side[:, : 2 - x.shape[1] % 2], x], 1), 2)


def _behind(x: Tensor, side: Tensor) -> Tensor:
    return _split(torch.cat([x, side[:, : 2 - x.shape[1] % 2]], 1), 2)


def _in_the_middle(x: Tensor, side: Tensor) -> Tensor:
    half = x.shape[1] // 2
    joined = torch.cat([x[:, :half], side[:, :2], x[:, half:]], 1)
    return _split(joined, 2).flip(1).flatten(1, 2)


def _ragged(x: Tensor, _: Tensor) -> Tensor:
    """As many channels again as it takes to split the axis in threes."""
    joined = torch.cat([x, x[:, : -x.shape[1] % 3]], 1)
    return _split(joined, 3).amax(1)


def _stretches(x: Tensor, side: Tensor) -> Tensor:
    """Splits of different widths side by side: one part ties along its rows, the other along its columns."""
    narrow, wide = _split(x, 4), torch.cat([_split(x, 4), _split(x, 4)], 2).flip(2)
    return torch.cat([narrow, side[:, None, :1].expand(-1, 4, -1, -1, -1), wide], 2).flatten(1, 2)[:, ::2]


def _padded_split(x: Tensor, _: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5).view(n, c // 3 + 1, 3, h, w).amax(2)


def _padded_rows(x: Tensor, _: Tensor) -> Tensor:
    return F.pad(_split(x, 2), (0, 0, 0, 0, 1, 1), value=-0.25).flatten(1, 2)


def _twice(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(n, 2 * c, h, w)


def _gated_groups(x: Tensor, _: Tensor) -> Tensor:
    """Branches weighted against each other, as selective kernels are."""
    parts = _split(x, 2)
    return (parts * parts.mean((3, 4), keepdim=True).softmax(1)).sum(1)


def _overwritten(x: Tensor, side: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:2] = side[:, :1]
    return y


BY_HAND: Mapping[str, ByHand] = MappingProxyType(
    {
        "pixels_crd": ByHand(_pixels_crd, 4, lambda c: c // 4, 2.0, 8),
        "pixels_dcr": ByHand(_pixels_dcr, 4, lambda c: c // 4, 2.0, 8),
        "patches": ByHand(_patches, 4, lambda c: c // 4, 2.0, 8),
        "into_height": ByHand(_into_height_and_back, 2, lambda c: c // 2 * 2, 1.0, 4),
        "into_width": ByHand(_into_width, 2, lambda c: c // 2, 1.0, 4),
        "one_dimensional": ByHand(_one_dimensional, 2, lambda c: c // 2, 1.0, 4),
        "unshuffled": ByHand(_unshuffled, 1, lambda c: 4 * c, 0.5),
        "two_levels": ByHand(_two_levels, 4),
        "beside": ByHand(lambda x, side: _beside(x, side).transpose(1, 2).flatten(1, 2), 1, lambda c: c + 2 - c % 2),
        "beside_max": ByHand(lambda x, side: _beside(x, side).amax(1), 1, lambda c: (c + 2 - c % 2) // 2, least=3),
        "beside_cut": ByHand(
            lambda x, side: _beside(x, side)[:, :, :-1].flatten(1, 2), 1, lambda c: c - c % 2, least=3
        ),
        "behind_rows": ByHand(lambda x, side: _behind(x, side).amax(2), 1, lambda c: 2, least=3),
        "behind_rolled": ByHand(lambda x, side: _behind(x, side).roll(1, 2).flatten(1, 2), 1, lambda c: c + 2 - c % 2),
        "in_the_middle": ByHand(_in_the_middle, 2, lambda c: c + 2),
        "ragged": ByHand(_ragged, 1, lambda c: -(-c // 3), least=4),
        "stretches": ByHand(_stretches, 4, lambda c: (3 * c + 5) // 2),
        "padded_split": ByHand(_padded_split, 3, lambda c: c // 3 + 1, least=3),
        "padded_rows": ByHand(_padded_rows, 2, lambda c: c + 4),
        "gated_groups": ByHand(_gated_groups, 2, lambda c: c // 2, least=4),
        "overwritten": ByHand(_overwritten),
        "roll": ByHand(lambda x, _: x.roll(2, 1)),
        "flip": ByHand(lambda x, _: x.flip(1)),
        "every_other": ByHand(lambda x, _: torch.cat([x[:, 1::2], x[:, ::2]], 1)),
        "interleaved": ByHand(lambda x, _: torch.stack(x.chunk(2, 1), 2).flatten(1, 2), 2),
        "repeat_interleave": ByHand(lambda x, _: x.repeat_interleave(2, 1), channels=lambda c: 2 * c),
        "tile": ByHand(lambda x, _: x.repeat(1, 2, 1, 1), channels=lambda c: 2 * c),
        "expand": ByHand(lambda x, _: _twice(x), channels=lambda c: 2 * c),
        "padded_value": ByHand(lambda x, _: F.pad(x, (0, 0, 0, 0, 2, 1), value=0.75), channels=lambda c: c + 3),
        "cropped": ByHand(lambda x, _: F.pad(x, (0, 0, 0, 0, -1, 0)), channels=lambda c: c - 1, least=3),
        "rolled_rows": ByHand(lambda x, _: _split(x, 2).roll(1, 2).flatten(1, 2), 2),
        "sliced_rows": ByHand(lambda x, _: _split(x, 2)[:, :, 1:].flatten(1, 2), 2, lambda c: c - 2, least=4),
        "last_of_groups": ByHand(lambda x, _: _split(x, 2)[:, -1], 2, lambda c: c // 2, least=4),
        "group_mean": ByHand(lambda x, _: _split(x, 2).mean(1), 2, lambda c: c // 2, least=4),
        "maxout": ByHand(lambda x, _: _split(x, x.shape[1] // 2).amax(2), 2, lambda c: c // 2, least=4),
        "swapped_halves": ByHand(lambda x, _: torch.cat(x.chunk(2, 1)[::-1], 1), 2),
    }
)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0]).permute(0, 3, 1, 2)


def _by_view(x: Tensor, weight: Tensor) -> Tensor:
    """The weight as one long matrix: a convolution by im2col of 1 x 1 windows, on as many copies as it has taps."""
    taps = weight.shape[2] * weight.shape[3]
    wide = x.repeat_interleave(taps, 1).permute(0, 2, 3, 1)
    return (wide @ weight.view(weight.shape[0], -1).t()).permute(0, 3, 1, 2)


READS: Mapping[str, tuple[bool, Callable[[Tensor, Tensor], Tensor]]] = MappingProxyType(
    {
        "conv": (True, lambda x, w: F.conv2d(x, w, padding=w.shape[2] // 2)),
        "conv_unpadded": (True, lambda x, w: F.conv2d(F.pad(x, [w.shape[2] // 2] * 4, mode="replicate"), w)),
        "transposed": (False, lambda x, w: F.conv_transpose2d(x, w, padding=w.shape[2] // 2)),
        "swapped": (False, lambda x, w: F.conv2d(x, w.transpose(0, 1), padding=w.shape[2] // 2)),
        "linear": (True, _linear),
        "view": (True, _by_view),
    }
)
"""Ways to read a convolution's weight[O, I, k, k] again: (it reads I channels, not O; on a map and the weight)."""
