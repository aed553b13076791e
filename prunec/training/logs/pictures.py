"""Pictures of a segmentation run: a few test images with their true and predicted masks.

Owns the choice of images, their masks while the run goes on, and the sheet (masks.png in the run
folder) that the report embeds: a row per image; columns: the image, its true mask, and the mask at each moment.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunec.files import replacing
from prunec.runtime.modules import evaluating
from prunec.training.data.augment import Pipeline
from prunec.training.data.sources import Source
from prunec.training.learning.objective import VOID, Segmentation

NUM_SHOWN = 6
_MOST_SIDE = 112
_GAP = 4
_GREY = 128

Rgb = np.ndarray[Any, np.dtype[np.uint8]]


@torch.no_grad()
def found_masks(module: nn.Module, images: Source, pipeline: Pipeline, objective: Segmentation) -> torch.Tensor:
    """Return ``module``'s masks of the images that are shown, uint8[n, H, W] on the CPU."""
    pixels, targets = images.take(_shown(images))
    with evaluating(module):
        return objective.masks(objective.logits(module(pipeline.test(pixels))), targets).cpu()


def write_sheet(path: Path, images: Source, found: Sequence[torch.Tensor]) -> None:
    """Write the sheet as PNG.

    Args:
        path: replaced whole.
        images: the test images.
        found: ``found_masks`` of each moment, in the order of the columns.
    """
    from PIL import Image

    pixels, targets = (part.cpu() for part in images.take(_shown(images)))
    palette = _palette(max(int(masks[masks != VOID].max(initial=1)) for masks in map(np.asarray, (targets, *found))))
    columns = [_rgb(pixels), *(palette[np.asarray(masks)] for masks in (targets, *found))]
    step = math.ceil(max(pixels.shape[2:]) / _MOST_SIDE)
    cells = [[_framed(picture[::step, ::step]) for picture in column] for column in columns]
    sheet = np.concatenate([np.concatenate(column, axis=0) for column in cells], axis=1)
    with replacing(path) as aside:
        Image.fromarray(sheet).save(aside, format="PNG", optimize=True)


def _shown(images: Source) -> torch.Tensor:
    """Return the numbers of the images that are shown, evenly spread."""
    count = min(NUM_SHOWN, len(images))
    return torch.tensor([index * len(images) // count for index in range(count)], device=images.index_device)


def _rgb(pixels: torch.Tensor) -> Rgb:
    """uint8[n, C, H, W] -> uint8[n, H, W, 3]."""
    return np.ascontiguousarray(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def _palette(last: int) -> Rgb:
    """Return a colour for each of 256 values: black, then white (two classes) or hues, and grey for void."""
    table = np.zeros((256, 3), dtype=np.uint8)
    for value in range(1, last + 1):
        hue = colorsys.hsv_to_rgb((value - 1) / last, 0.75 if value % 2 else 0.45, 1.0)
        table[value] = 255 if last == 1 else np.array([round(255 * part) for part in hue])
    table[VOID] = _GREY
    return table


def _framed(picture: Rgb) -> Rgb:
    return np.pad(picture, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
