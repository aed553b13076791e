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
from typing import Literal

import torch
from torch import nn

from prunec.errors import BadInput
from prunec.models.convnet import ConvNet
from prunec.models.densenet import DenseNet
from prunec.models.digits import DigitsNet
from prunec.models.googlenet import GoogLeNet
from prunec.models.inception_v3 import InceptionV3
from prunec.models.mobilenet_v2 import MobileNetV2
from prunec.models.resnet import BasicBlock, Bottleneck, ResNet
from prunec.models.resnet_cifar import CifarResNet
from prunec.models.segnet import SegNet

__all__ = ["ARCHITECTURES", "Architecture", "build", "count_macs", "count_parameters", "find"]

TaskKind = Literal["classification", "segmentation"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that prunec can build.

    Args:
        name: what ``--arch`` takes.
        build: returns a freshly initialised module in training mode.
        input_shape: (C, H, W) of the images that it was designed for.
        num_classes: outputs per image; channels of the mask logits of a segmentation network.
        description: one line for ``prunec archs``.
        task: classification gives float32[N, num_classes], segmentation float32[N, num_classes, H, W].
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    num_classes: int
    description: str
    task: TaskKind = "classification"

    def skeleton(self) -> nn.Module:
        """Return the network on the meta device: shapes without numbers, made in no time."""
        with torch.device("meta"):
            return self.build()

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


_IMAGENET = (3, 224, 224)

_ALL = (
    Architecture(
        "digits", DigitsNet, (1, 32, 32), 10, "the demo: conv-BN stem, a residual block and a concat of two branches"
    ),
    Architecture("convnet", ConvNet, (3, 32, 32), 10, "the ISTA paper's CIFAR-10 network, 96-192-192-384"),
    *(_cifar_resnet(blocks) for blocks in (3, 5, 7, 9, 18)),
    Architecture(
        "densenet_bc100",
        partial(DenseNet, (16, 16, 16), 12, 10, small_images=True),
        (3, 32, 32),
        10,
        "CIFAR DenseNet-BC, depth 100, growth 12",
    ),
    *(
        Architecture(name, partial(ResNet, block, blocks), _IMAGENET, 1000, f"ImageNet ResNet, {what}")
        for name, block, blocks, what in (
            ("resnet18", BasicBlock, (2, 2, 2, 2), "blocks of two 3x3"),
            ("resnet34", BasicBlock, (3, 4, 6, 3), "blocks of two 3x3"),
            ("resnet50", Bottleneck, (3, 4, 6, 3), "bottleneck blocks"),
            ("resnet101", Bottleneck, (3, 4, 23, 3), "bottleneck blocks"),
        )
    ),
    Architecture(
        "densenet121", partial(DenseNet, (6, 12, 24, 16), 32), _IMAGENET, 1000, "ImageNet DenseNet-BC, growth 32"
    ),
    Architecture("googlenet", GoogLeNet, _IMAGENET, 1000, "Inception-v1 with BatchNorm"),
    Architecture("inception_v3", InceptionV3, (3, 299, 299), 1000, "Inception-v3, factorised convolutions"),
    Architecture("mobilenet_v2", MobileNetV2, _IMAGENET, 1000, "inverted residuals with depthwise convolutions"),
    Architecture(
        "segnet",
        SegNet,
        _IMAGENET,
        1,
        "the ISTA paper's foreground segmentation: Inception branch locates, DenseNet branch refines",
        task="segmentation",
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({arch.name: arch for arch in _ALL})


def build(name: str) -> nn.Module:
    """Build the architecture ``name`` with fresh weights.

    Raises:
        BadInput: no such architecture.
    """
    found = find(name)
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise BadInput(f"there is no architecture called {name!r}", do=f"choose one of: {known}")
    return found.build()


def find(name: str) -> Architecture | None:
    """Return the architecture of that name; capitals, hyphens and underscores make no difference."""
    return {_bare(known): architecture for known, architecture in ARCHITECTURES.items()}.get(_bare(name))


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def count_macs(architecture: Architecture) -> int:
    """Count the multiply-accumulates of convolutions and linear layers for one image, without computing any."""
    macs = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        macs += output.numel() * layer.weight[0].numel()

    module = architecture.skeleton().eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    (image,) = architecture.example_inputs(1)
    with torch.no_grad():
        module(image.to("meta"))
    return macs


def count_parameters(module: nn.Module, *, batch_norm_statistics: bool = False) -> int:
    """Count the module's parameters; optionally with running mean and variance, as the ISTA paper counts.

    The paper counts 4 numbers per BatchNorm channel (gamma, beta, mean, variance).
    """
    total = sum(parameter.numel() for parameter in module.parameters())
    if batch_norm_statistics:
        total += sum(buffer.numel() for buffer in module.buffers() if buffer.is_floating_point())
    return total
