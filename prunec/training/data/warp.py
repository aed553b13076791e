"""Flips, affine maps and colour changes of photographs and their masks, by kornia.

The only place where kornia is called. Masks follow their images, and random numbers come from the generator that is
passed in. The paper's CIFAR-10 pipeline is in augment.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from prunec.errors import MissingDependency

_DEGREES, _SHIFT, _SCALE = 15.0, (0.1, 0.1), (0.75, 1.25)
_COLOUR, _HUE = 0.2, 0.02


def random_warp(
    images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mirror half of the images, turn (15°), shift (a tenth) and scale (¾ to 5/4) all, and change their colours.

    Args:
        images: float32[N, C, H, W] in 0..1, C being 1 or 3; zeros come in at the border.
        masks: uint8[N, H, W] or None; they move with their images, to the nearest pixel, and VOID (255) comes in.
        generator: of every random number, on the CPU whatever the device.

    Raises:
        MissingDependency: kornia is not installed.
    """
    warp = _make_warp(images.shape[1], masks is not None)
    # Zeros come in at the border: in masks turned upside down they mean VOID.
    inputs = (images,) if masks is None else (images, (255 - masks)[:, None].float())
    # kornia draws from torch's ambient generator: lend it one, and give the caller's back.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        warped = warp(*inputs)
    if masks is None:
        return warped, None
    return warped[0], (255 - warped[1][:, 0].round()).to(torch.uint8)


@lru_cache(maxsize=4)
def _make_warp(channels: int, masked: bool) -> Any:
    try:
        import kornia.augmentation as ka
    except ImportError as error:
        raise MissingDependency(
            "the augmentation `scene` needs kornia",
            do="pip install kornia, or give another --augment (crop-flip moves masks too)",
        ) from error
    if channels == 3:
        colour = [ka.ColorJiggle(_COLOUR, _COLOUR, _COLOUR, _HUE, p=1.0)]
    else:
        span = (1 - _COLOUR, 1 + _COLOUR)
        colour = [ka.RandomBrightness(span, p=1.0), ka.RandomContrast(span, p=1.0)]
    return ka.AugmentationSequential(
        ka.RandomHorizontalFlip(p=0.5),
        ka.RandomAffine(_DEGREES, translate=_SHIFT, scale=_SCALE, p=1.0),
        *colour,
        data_keys=["input", "mask"] if masked else ["input"],
        extra_args={},
    )
