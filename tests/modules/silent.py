"""A convolution with silent channels in front of a piece of forward, for the FX backend's tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from assertions import assert_same_function
from torch import Tensor, nn
from torch.nn import functional as F

from modules.blocks import cbr
from modules.networks import silence
from prunec.api import Pruned, prune_module

CHANNELS = 12
SILENT = (0, 1, 2, 3, 5, 6, 9)
"""Channels with gamma 0: a row and a column of a 3x4 view, two columns of a 2x6 view, and some more."""
ZERO = (0, 1, 2, 3, 5, 9)
"""Those of them that are zero behind the ReLU; the other one is constant and not zero."""


class Spelled(nn.Module):
    """A silenced convolution, a piece of forward, and what reads the result: a 1x1 convolution, or a linear layer."""

    def __init__(self, piece: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = cbr(3, CHANNELS)
        self.piece = piece
        found = piece(torch.zeros(2, CHANNELS, 8, 8))
        self.linear = found.dim() != 4
        self.tail = nn.Linear(found.shape[-1], 5) if self.linear else nn.Conv2d(found.shape[1], 5, 1)
        silence(self, 0.0)
        self.stem[1].weight.data[list(SILENT)] = 0.0
        self.stem[1].bias.data[list(SILENT)] = 0.3
        self.stem[1].bias.data[list(ZERO)] = -0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.piece(self.stem(x)))  # type: ignore[no-any-return]


def prune(net: nn.Module) -> Pruned:
    result = prune_module(net, (batch(),), validate=False)
    assert_same_function(net, result.module, batch(), batch(1))
    return result


def batch(size: int = 2) -> Tensor:
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(size))


REWRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "view with sizes": lambda x: x.view(x.size(0), CHANNELS * 64),
    "view from the end": lambda x: x.view(-1, CHANNELS * 64),
    "view with -1": lambda x: x.view(x.size(0), -1),
    "view of a shape": lambda x: x.reshape(x.shape),
    "reshape with a tuple": lambda x: x.reshape((-1, CHANNELS * 64)),
    "reshape with a list": lambda x: torch.reshape(x, [x.shape[0], CHANNELS, 64]).mean(2),
    "reshape by keyword": lambda x: torch.reshape(input=x, shape=(-1, CHANNELS * 64)),
    "flatten": lambda x: torch.flatten(x, 1),
    "channels counted by the forward": lambda x: x.view(x.size(0), x.size(1), -1).mean(-1),
    "sizes by shape": lambda x: x.view(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).sum(2),
    "split axis": lambda x: x.view(-1, 3, 4, 8, 8).mean(1),
    "split attention": lambda x: (x.view(-1, 3, 4, 8, 8).softmax(1) * x.view(-1, 3, 4, 8, 8)).sum(1),
    "standardised per branch": lambda x: x.view(-1, 3, 4, 64).std(3).amax(1),
    "unflatten": lambda x: x.unflatten(1, (3, 4)).mean(2),
    "unflatten by keyword": lambda x: torch.unflatten(x, dim=1, sizes=(3, 4)).mean(1),
    "channel shuffle": lambda x: x.view(-1, 3, 4, 8, 8).transpose(1, 2).reshape(-1, CHANNELS, 8, 8),
    "channel shuffle by permute": lambda x: x.reshape(x.size(0), 2, 6, 8, 8).permute(0, 2, 1, 3, 4).flatten(1, 2),
    "channel shuffle op": lambda x: F.channel_shuffle(x, 3),
    "chunk method": lambda x: x.chunk(3, 1)[1],
    "chunk function": lambda x: torch.chunk(x, 2, dim=1)[0],
    "chunk by keyword": lambda x: torch.chunk(input=x, chunks=2, dim=1)[1],
    "uneven chunk": lambda x: x.chunk(5, 1)[3],
    "unpacked chunk": lambda x: (lambda a, b: a * 2 + b)(*x.chunk(2, 1)),
    "split method": lambda x: x.split(5, 1)[1],
    "split function": lambda x: torch.split(x, 4, dim=1)[2],
    "split with sizes": lambda x: torch.cat(torch.split(x, [2, 7, 3], dim=1)[1:], 1),
    "split by keyword": lambda x: torch.split(tensor=x, split_size_or_sections=[6, 6], dim=1)[0],
    "tensor split": lambda x: x.tensor_split([3, 9], dim=1)[1],
    "slice": lambda x: x[:, 2:9],
    "slice to the end": lambda x: x[:, 5:],
    "slice from the end": lambda x: x[:, -4:],
    "slice with ellipsis": lambda x: x[..., 3:, :, :],
    "slice with a new axis": lambda x: x[:, None, 2:8][:, 0],
    "slice over space too": lambda x: x[:, 1:7, ::2, 1:],
    "slice under an ellipsis": lambda x: x[:, 2:7, ..., 1:],
    "narrow": lambda x: x.narrow(1, 2, 6),
    "narrow function": lambda x: torch.narrow(x, 1, 0, 7),
    "index list": lambda x: x[:, [3, 1, 8, 8]],
    "index select": lambda x: torch.index_select(x, 1, torch.tensor([7, 2, 0, 11])),
    "index select method": lambda x: x.index_select(1, torch.arange(3, 9)),
    "flip": lambda x: x.flip(1),
    "flip over space": lambda x: torch.flip(x, dims=(1, 3)),
    "roll": lambda x: torch.roll(x, 3, 1),
    "stack": lambda x: torch.stack([x, x * 2], 1).flatten(1, 2),
    "stack behind": lambda x: torch.stack([x, -x], 2).mean(2),
    "concat of lists": lambda x: torch.cat([x, x.abs()], 1),
    "concat with constants": lambda x: torch.cat([x, x.new_ones(x.size(0), 4, 8, 8)], 1),
    "concat with zeros": lambda x: torch.cat([torch.zeros(x.size(0), 2, 8, 8), x], 1),
    "channels padded": lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)),
    "channels padded with a value": lambda x: F.pad(x, [0, 0, 0, 0, 1, 1], value=0.5),
    "space and channels padded": lambda x: F.pad(x, (1, 0, 0, 1, 2, 0)),
    "channels cropped": lambda x: F.pad(x, (0, 0, 0, 0, -2, -1)),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "tile": lambda x: torch.tile(x, (1, 2, 1, 1)),
    "repeat interleave": lambda x: x.repeat_interleave(2, dim=1),
    "expand": lambda x: x.new_full((1, 1, 1, 1), 0.5).expand(-1, CHANNELS, -1, -1) + x,
    "expand as": lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 2, stride=2).mean(2),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "positions as tokens": lambda x: x.flatten(2).transpose(1, 2),
    "squeeze": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "global max": lambda x: x.amax((2, 3)),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1) * 2,
    "scaled by the number of channels": lambda x: x / x.size(1) ** 0.5,
    "scaled by shape": lambda x: x * (1.0 / x.shape[1]),
    "gated": lambda x: x * torch.sigmoid(x),
    "glu": lambda x: F.glu(x, dim=1),
    "minimum": lambda x: torch.minimum(x, x.new_full((1, CHANNELS, 1, 1), 0.3)),
    "where": lambda x: torch.where(x > 0.1, x, torch.zeros_like(x)),
    "masked": lambda x: x.masked_fill(x < 0.2, 0.7),
    "in place": lambda x: x.add_(1.0).mul_(2.0).clamp_(max=3.0),
    "in place on a copy": lambda x: x.clone().relu_() + x,
    "average pool that counts padding": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "every second channel": lambda x: torch.cat((x[:, 1::2], x[:, ::3]), dim=1),
    "every second channel and pixel": lambda x: x[..., ::2, ::2, 1::2],
    "channels in reverse": lambda x: torch.cat((x.flip(1), torch.flip(x, (1, 3))), dim=1),
    "einsum over space": lambda x: torch.einsum("nchw->nc", x),
}
"""Pieces through which channels must go away."""
