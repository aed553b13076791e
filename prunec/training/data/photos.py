"""``digits-on-photos``: real handwritten digits pasted onto real photographs, with exact masks. Nothing is downloaded.

Makes the set. Digits and photographs are those that scikit-learn bundles (1,797 scans of 8x8 pixels;
a temple in China and a dahlia, 427x640). Training and test images share neither a digit nor a pixel of a
photograph. A picture is a function of its number and the seed alone, whatever its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from prunec.errors import MissingDependency
from prunec.training.data.imagefiles import Labelled, RawSet

NUM_TRAIN, NUM_TEST = 800, 200
_SEED = 0
_TEST_DIGITS = 360
_TEST_COLUMNS = 0.25
"""Share of each photograph, at its right edge, that only test images show."""
_CHUNK = 64


@dataclass(frozen=True, slots=True, eq=False)
class _Scenes:
    """The random choices for N pictures; lengths are relative to the picture's or the photograph's side.

    Args:
        photo: int64[N]. digit: int64[N].
        crop: float32[N, 3], the visible square of the photograph: side (of its height), left and top in 0..1.
        size, angle, centre: float32[N], float32[N] in radians, float32[N, 2]: where the digit lies.
        colour: float32[N, 3] in 0..1.
    """

    photo: torch.Tensor
    digit: torch.Tensor
    crop: torch.Tensor
    size: torch.Tensor
    angle: torch.Tensor
    centre: torch.Tensor
    colour: torch.Tensor


def make_digits_on_photos(size: tuple[int, int]) -> RawSet:
    """Make the set at (height, width): NUM_TRAIN pictures to train on, NUM_TEST to test; masks are 1 on the digit.

    Raises:
        MissingDependency: scikit-learn or Pillow is not installed.
    """
    digits, photos = _load()
    order = torch.from_numpy(np.random.default_rng(_SEED).permutation(len(digits)))
    edge = round(photos.shape[3] * (1 - _TEST_COLUMNS))
    train = _make(digits[order[_TEST_DIGITS:]], photos[..., :edge], NUM_TRAIN, _SEED + 1, size)
    test = _make(digits[order[:_TEST_DIGITS]], photos[..., edge:], NUM_TEST, _SEED + 2, size)
    return RawSet(train, test, ("background", "digit"))


def _load() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits, float32[N, 1, 8, 8], and the photographs, float32[P, 3, H, W], all in 0..1."""
    try:
        import PIL  # noqa: F401 - what scikit-learn reads its photographs with
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise MissingDependency(
            "the set digits-on-photos needs scikit-learn and Pillow", do="pip install scikit-learn pillow"
        ) from error
    digits: Any = load_digits().images
    photos = np.stack(load_sample_images().images).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.float32(digits))[:, None] / 16, torch.from_numpy(np.float32(photos)) / 255


def _make(digits: torch.Tensor, photos: torch.Tensor, count: int, seed: int, size: tuple[int, int]) -> Labelled:
    scenes = _draw(len(digits), len(photos), count, torch.Generator().manual_seed(seed))
    pixels = torch.empty(count, 3, *size, dtype=torch.uint8)
    masks = torch.empty(count, *size, dtype=torch.uint8)
    for chunk in torch.arange(count).split(_CHUNK):
        background = _backgrounds(photos, scenes, chunk, size)
        ink = _ink(digits, scenes, chunk, size)
        picture = background + ink * (_colours(background, scenes.colour[chunk]) - background)
        pixels[chunk] = (picture * 255).round().clamp(0, 255).byte()
        masks[chunk] = (ink[:, 0] >= 0.5).byte()
    return pixels, masks


def _draw(num_digits: int, num_photos: int, count: int, generator: torch.Generator) -> _Scenes:
    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    return _Scenes(
        photo=torch.randint(num_photos, (count,), generator=generator),
        digit=torch.randint(num_digits, (count,), generator=generator),
        crop=torch.cat((uniform(0.15, 0.35, 1), uniform(0, 1, 2)), dim=1),
        size=uniform(0.55, 0.95),
        angle=uniform(-0.4, 0.4),
        centre=uniform(0.35, 0.65, 2),
        colour=uniform(0, 1, 3),
    )


def _grid(size: tuple[int, int]) -> torch.Tensor:
    """Return float32[H, W, 2]: the (x, y) of each pixel's centre, in 0..1."""
    ys, xs = ((torch.arange(length) + 0.5) / length for length in size)
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)


def _backgrounds(photos: torch.Tensor, scenes: _Scenes, chunk: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut a square out of a photograph for each picture: float32[N, 3, H, W]."""
    _, _, height, width = photos.shape
    side = scenes.crop[chunk, 0] * height
    left = scenes.crop[chunk, 1] * (width - side)
    top = scenes.crop[chunk, 2] * (height - side)
    corner = torch.stack((left, top), dim=1)[:, None, None]
    at = corner + _grid(size) * side[:, None, None, None]
    places = at / torch.tensor([width, height]) * 2 - 1
    made = torch.empty(len(chunk), 3, *size)
    for index in range(len(photos)):
        chosen = scenes.photo[chunk] == index
        # One call for all the squares of a photograph, placed one below the other.
        cuts = F.grid_sample(
            photos[index : index + 1],
            places[chosen].reshape(1, -1, size[1], 2),
            padding_mode="border",
            align_corners=False,
        )
        made[chosen] = cuts[0].reshape(3, -1, *size).transpose(0, 1)
    return made


def _ink(digits: torch.Tensor, scenes: _Scenes, chunk: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Place each picture's digit: float32[N, 1, H, W], 1 where it covers the pixel."""
    extent = scenes.size[chunk][:, None, None, None]
    offset = (_grid(size) - scenes.centre[chunk][:, None, None]) / extent * 2
    cos, sin = scenes.angle[chunk].cos(), scenes.angle[chunk].sin()
    turn = torch.stack((torch.stack((cos, sin), dim=1), torch.stack((-sin, cos), dim=1)), dim=1)
    places = torch.einsum("nij,nhwj->nhwi", turn, offset)
    soft = F.grid_sample(digits[scenes.digit[chunk]], places, mode="bicubic", align_corners=False)
    # A scan is blurred; this makes the edges of its strokes about a pixel wide.
    sharpness = float(extent.mean()) * math.sqrt(size[0] * size[1]) / 8
    return ((soft - 0.5) * sharpness + 0.5).clamp(0, 1)


def _colours(background: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return each digit's colour, float32[N, 3, 1, 1]: as drawn, but apart from the background's brightness."""
    mean = background.mean((1, 2, 3), keepdim=True)
    colour = wanted[:, :, None, None]
    apart = torch.where(mean < 0.5, 0.5, -0.5)
    return (0.6 * colour + 0.2 + apart * 0.6).clamp(0, 1)
