"""The built-in architectures, by name.

Owns ``ARCHITECTURES`` (what ``--arch`` and ``prunec archs`` read) and ``build``. Each network is
written in the field's usual form in a file of its own; parameter names are the field's too, so that
published weights load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from prunec.errors import BadInput
from prunec.models.convnet import ConvNet
from prunec.models.digits import DigitsNet
from prunec.models.resnet_cifar import CifarResNet

__all__ = ["ARCHITECTURES", "Architecture", "build", "count_parameters"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that prunec can build.

    Args:
        name: what ``--arch`` takes.
        build: returns a freshly initialised module in training mode.
        input_shape: (C, H, W) of the images that it was designed for.
        num_classes: outputs per image.
        description: one line for ``prunec archs``.
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    num_classes: int
    description: str

    def example_inputs(self, batch: int = 2) -> tuple[torch.Tensor, ...]:
        """Return float32[batch, C, H, W] zeros: what tracing needs."""
        return (torch.zeros(batch, *self.input_shape),)


def _cifar_resnet(blocks: int) -> Architecture:
    depth = 6 * blocks + 2
    return Architecture(
        name=f"resnet{depth}",
        build=partial(CifarResNet, blocks),
        input_shape=(3, 32, 32),
        num_classes=10,
        description=f"CIFAR ResNet-{depth}, option-A shortcuts, widths 16-32-64",
    )


_ALL = (
    Architecture(
        "digits", DigitsNet, (1, 32, 32), 10, "the demo: conv-BN stem, a residual block and a concat of two branches"
    ),
    Architecture("convnet", ConvNet, (3, 32, 32), 10, "the ISTA paper's CIFAR-10 network, 96-192-192-384"),
    *(_cifar_resnet(blocks) for blocks in (3, 5, 7, 9, 18)),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({arch.name: arch for arch in _ALL})


def build(name: str) -> nn.Module:
    """Build the architecture ``name`` with fresh weights.

    Raises:
        BadInput: no such architecture.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise BadInput(f"there is no architecture called {name!r}", do=f"choose one of: {known}")
    return ARCHITECTURES[name].build()


def count_parameters(module: nn.Module, *, batch_norm_statistics: bool = False) -> int:
    """Count the module's parameters; optionally with running mean and variance, as the ISTA paper counts.

    The paper counts 4 numbers per BatchNorm channel (gamma, beta, mean, variance).
    """
    total = sum(parameter.numel() for parameter in module.parameters())
    if batch_norm_statistics:
        total += sum(buffer.numel() for buffer in module.buffers() if buffer.is_floating_point())
    return total
