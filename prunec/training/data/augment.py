"""Batches of uint8 images -> network inputs, vectorised, on the device.

Owns normalisation and augmentation. Every random number comes from the generator that is passed in; it
lives on the CPU whatever the device, so that a seed means the same pictures everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from prunec.training.data.warp import random_warp
from prunec.training.learning.execution import send

Normalise = Literal["standardise", "imagenet", "dataset"]
"""``standardise``: each image to mean 0, deviation 1 (the paper). ``imagenet``, ``dataset``: by fixed mean, std."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Augment:
    """Random changes to a training image.

    Args:
        pad: zero pixels added on each side before a crop back to the original size.
        flip: mirror left-right with probability 1/2.
        brightness: largest shift, as a share of the pixel range (63/255 in the paper's pipeline).
        contrast: (low, high) factor about each image's channel means; None leaves it alone.
        warp: flip, affine map and colour by kornia; see warp.random_warp.
    """

    pad: int = 0
    flip: bool = False
    brightness: float = 0.0
    contrast: tuple[float, float] | None = None
    warp: bool = False


NO_AUGMENT = Augment()
PAPER_AUGMENT = Augment(pad=4, flip=True, brightness=63 / 255, contrast=(0.2, 1.8))
CROP_AND_FLIP = Augment(pad=4, flip=True)
SHIFT = Augment(pad=2)

SCENE = Augment(warp=True)

AUGMENTS = {"none": NO_AUGMENT, "shift": SHIFT, "crop-flip": CROP_AND_FLIP, "paper": PAPER_AUGMENT, "scene": SCENE}


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Normalisation and augmentation of one data set.

    Args:
        normalise: see ``Normalise``.
        mean, std: per channel in 0..1, for the two fixed ones.
        augment: for training images; test images are only normalised.
    """

    normalise: Normalise
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = NO_AUGMENT

    def train(
        self, pixels: torch.Tensor, targets: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8[N, C, H, W] -> float32[N, C, H, W], augmented, with its targets: masks move along, labels stay."""
        masked = targets.dim() > 1
        if masked:
            pixels, targets = self._shifted_together(pixels, targets, generator)
        else:
            pixels = self._shifted(pixels, generator)
        images = pixels.float() / 255
        if self.augment.warp:
            images, masks = random_warp(images, targets if masked else None, generator)
            targets = masks if masks is not None else targets
        if self.augment.brightness:
            images = random_brightness(images, self.augment.brightness, generator)
        if self.augment.contrast is not None:
            images = random_contrast(images, self.augment.contrast, generator)
        return self._normalised(images), targets

    def _shifted(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.augment.pad:
            pixels = random_crop(pixels, self.augment.pad, generator)
        return random_flip(pixels, generator) if self.augment.flip else pixels

    def _shifted_together(
        self, pixels: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift images with their inverted masks as one more channel, so that zeros from the border become VOID."""
        moved = self._shifted(torch.cat((pixels, 255 - masks[:, None]), dim=1), generator)
        return moved[:, :-1], 255 - moved[:, -1]

    def test(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8[N, C, H, W] -> float32[N, C, H, W]."""
        return self._normalised(pixels.float() / 255)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        if self.normalise == "standardise":
            return standardise(images)
        mean = send(torch.tensor(self.mean).reshape(1, -1, 1, 1), images.device)
        std = send(torch.tensor(self.std).reshape(1, -1, 1, 1), images.device)
        return (images - mean) / std


def pipeline(
    normalise: Normalise, augment: Augment, mean: tuple[float, ...], std: tuple[float, ...], channels: int
) -> Pipeline:
    """Make the pipeline of a data set whose training pixels have ``mean`` and ``std``.

    ``imagenet`` replaces them by ImageNet's, which published weights expect (their average for grey images).
    """
    if normalise == "imagenet":
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return Pipeline(normalise, mean, std, augment)


def random_crop(pixels: torch.Tensor, pad: int, generator: torch.Generator) -> torch.Tensor:
    """Shift each image by up to ``pad`` pixels in each direction; zeros come in at the border."""
    count, channels, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, (pad, pad, pad, pad))
    shifts = send(torch.randint(0, 2 * pad + 1, (2, count), generator=generator), pixels.device)
    rows = shifts[0, :, None] + torch.arange(height, device=pixels.device)
    columns = shifts[1, :, None] + torch.arange(width, device=pixels.device)
    image = torch.arange(count, device=pixels.device)[:, None, None, None]
    channel = torch.arange(channels, device=pixels.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def random_flip(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image left-right with probability 1/2."""
    flip = send(torch.rand(len(pixels), generator=generator) < 0.5, pixels.device)
    return torch.where(flip[:, None, None, None], pixels.flip(3), pixels)


def random_brightness(images: torch.Tensor, delta: float, generator: torch.Generator) -> torch.Tensor:
    """Add one number of [−delta, delta] to each image of float[N, C, H, W]."""
    shift = (torch.rand(len(images), generator=generator) * 2 - 1) * delta
    return images + send(shift, images.device)[:, None, None, None]


def random_contrast(images: torch.Tensor, bounds: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Stretch each image about its channel means by one factor of ``bounds``."""
    low, high = bounds
    factor = send(torch.rand(len(images), generator=generator) * (high - low) + low, images.device)
    means = images.mean((2, 3), keepdim=True)
    return (images - means) * factor[:, None, None, None] + means


def standardise(images: torch.Tensor) -> torch.Tensor:
    """Bring each image to mean 0 and deviation 1; a flat image's deviation counts as 1/√(C·H·W) of the pixel range.

    The bound is that of TensorFlow's per_image_standardization, on pixels in 0..255 as there.
    """
    numel = images[0].numel()
    mean = images.mean((1, 2, 3), keepdim=True)
    std = images.std((1, 2, 3), keepdim=True, correction=0)
    return (images - mean) / std.clamp(min=1 / (255 * numel**0.5))
