"""Networks whose weights are computed of parameters: sums, products, norms, masks; the table COMPUTED_WEIGHTS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured, ln_structured

from modules.blocks import Head, cbr
from modules.networks import Net


class LowRank(nn.Module):
    """A linear layer whose weight is the product of two parameters, added to a third (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.base = nn.Linear(8, 12)
        self.down, self.up = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(12, 4))
        self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        x = F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)
        return self.head(F.relu(self.norm(x)))  # type: ignore[no-any-return]


class Spectral(nn.Module):
    """Spectral normalisation written out: the weight is divided by u·W·v."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight = cbr(3, 8), nn.Parameter(torch.randn(12, 8, 3, 3))
        self.u, self.v = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(72))
        self.norm, self.head = nn.BatchNorm2d(12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / torch.dot(self.u, torch.mv(self.weight.flatten(1), self.v))
        return self.head(F.relu(self.norm(F.conv2d(self.stem(x), weight, padding=1))))  # type: ignore[no-any-return]


class StandardisedByNorm(nn.Module):
    """Weight standardisation by batch_norm on the weight, as NFNets write it: a mean over input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight = cbr(3, 8), nn.Parameter(torch.randn(12, 8, 3, 3))
        self.gain, self.norm, self.head = nn.Parameter(torch.ones(12)), nn.BatchNorm2d(12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, 12, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain, training=True, momentum=0.0, eps=1e-6)
        y = F.conv2d(self.stem(x), weight.reshape_as(self.weight), padding=1)
        return self.head(F.relu(self.norm(y)))  # type: ignore[no-any-return]


def normed(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    """Return a network whose second convolution is wrapped (weight or spectral normalisation of PyTorch)."""

    def make() -> nn.Module:
        wrapped = wrap(nn.Conv2d(8, 12, 3, padding=1))
        return nn.Sequential(cbr(3, 8), wrapped, nn.BatchNorm2d(12), nn.ReLU(), cbr(12, 8), Head(8))

    return make


def with_layer(layer: Callable[[], nn.Module], channels: int = 12) -> Callable[[], nn.Module]:
    """Return a network with a layer of 8 input channels, and of ``channels`` output channels, in its middle."""
    return lambda: nn.Sequential(
        cbr(3, 8), layer(), nn.BatchNorm2d(channels), nn.ReLU(), cbr(channels, 8), nn.Conv2d(8, 4, 1), Head(4)
    )


class ByHand(nn.Module):
    """A convolution whose weight is g · v / ‖v‖, with the norm by ``torch.nn.functional.normalize`` on rows."""

    def __init__(self, roots: bool = False) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(12, 8, 3, 3)), nn.Parameter(torch.rand(12) + 0.5)
        self.roots = roots

    def forward(self, x: Tensor) -> Tensor:
        if self.roots:
            weight = self.v / self.v.pow(2).sum(dim=(1, 2, 3), keepdim=True).sqrt() * self.g.reshape(-1, 1, 1, 1)
        else:
            weight = F.normalize(self.v.flatten(1), dim=1).view_as(self.v) * self.g.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, padding=1)


class NormedTwice(nn.Module):
    """A weight-normed convolution that runs twice, and a linear layer on a whole-tensor norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.conv = torch.nn.utils.weight_norm(nn.Conv2d(8, 8, 3))
        self.fc = parametrizations.weight_norm(nn.Linear(8, 12), dim=None)
        self.norm, self.head = nn.BatchNorm1d(12), torch.nn.utils.weight_norm(nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(F.relu(self.conv(self.stem(x)))))
        return self.head(F.relu(self.norm(self.fc(y.mean((2, 3))))))  # type: ignore[no-any-return]


class Reparametrised(nn.Module):
    """RepVGG's three branches added up as weights: 3x3, a padded 1x1 and an identity."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.norm, self.head = cbr(3, channels), nn.BatchNorm2d(channels), Head(channels)
        self.three = nn.Parameter(torch.randn(channels, channels, 3, 3) / 8)
        self.one = nn.Parameter(torch.randn(channels, channels, 1, 1) / 3)
        self.register_buffer("same", F.pad(torch.eye(channels)[:, :, None, None], [1, 1, 1, 1]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.three + F.pad(self.one, [1, 1, 1, 1]) + self.same
        return self.head(F.relu(self.norm(F.conv2d(self.stem(x), weight, padding=1))))  # type: ignore[no-any-return]


def masked_layers(cut: Callable[[nn.Module], nn.Module], groups: int = 1) -> Callable[[], nn.Module]:
    """Return a network whose convolutions PyTorch's own pruning has masked."""

    def make() -> nn.Module:
        net = nn.Sequential(
            cbr(3, 8), nn.Conv2d(8, 12, 3, padding=1, groups=groups), nn.BatchNorm2d(12), nn.ReLU(), cbr(12, 8), Head(8)
        )
        for part in list(net.modules()):
            if isinstance(part, nn.Conv2d | nn.Linear):
                cut(part)
        return net

    return make


COMPUTED_WEIGHTS: Mapping[str, Net] = MappingProxyType(
    {
        "low_rank": Net(LowRank),
        "spectral": Net(Spectral),
        "standardised_by_norm": Net(StandardisedByNorm),
        "weight_norm_hooks": Net(normed(torch.nn.utils.weight_norm)),
        "weight_norm_parametrized": Net(normed(parametrizations.weight_norm)),
        "weight_norm_of_inputs": Net(normed(partial(torch.nn.utils.weight_norm, dim=1))),
        "weight_norm_of_all": Net(normed(partial(parametrizations.weight_norm, dim=None))),
        "weight_norm_of_taps": Net(normed(partial(torch.nn.utils.weight_norm, dim=2))),
        "weight_norm_last": Net(normed(partial(parametrizations.weight_norm, dim=3))),
        "weight_norm_transposed": Net(
            with_layer(lambda: parametrizations.weight_norm(nn.ConvTranspose2d(8, 12, 4, 2, 1)))
        ),
        "weight_norm_transposed_out": Net(
            with_layer(lambda: torch.nn.utils.weight_norm(nn.ConvTranspose2d(8, 12, 4, 2, 1), dim=1))
        ),
        "weight_norm_grouped": Net(
            with_layer(lambda: torch.nn.utils.weight_norm(nn.Conv2d(8, 12, 3, padding=1, groups=2)))
        ),
        "weight_norm_depthwise": Net(
            with_layer(lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1, groups=8)), 8)
        ),
        "weight_norm_twice": Net(NormedTwice),
        "weight_norm_normalize": Net(with_layer(ByHand)),
        "weight_norm_roots": Net(with_layer(lambda: ByHand(True))),
        "masked": Net(masked_layers(lambda part: l1_unstructured(part, "weight", 0.4))),
        "masked_grouped": Net(masked_layers(lambda part: l1_unstructured(part, "weight", 0.4), groups=2)),
        "masked_filters": Net(masked_layers(lambda part: ln_structured(part, "weight", 0.4, n=2, dim=0))),
        "masked_inputs": Net(masked_layers(lambda part: ln_structured(part, "weight", 0.3, n=2, dim=1))),
        "reparametrised": Net(Reparametrised),
        "spectral_norm_hooks": Net(normed(torch.nn.utils.spectral_norm)),
        "spectral_norm_parametrized": Net(normed(parametrizations.spectral_norm)),
    }
)
