"""ONNX -> torch: Resize and Upsample, torch's own if it has the mode, else two gathers per axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from prunec.frontends.onnx.sizes.view import View
from prunec.importer.build import Builder, Unconvertible, sizes


def resize(view: View, b: Builder) -> fx.Node:
    """Resize and Upsample along space: torch's own if it has the mode, else two gathers per axis."""
    before, after = sizes(view.shape(0), "its size"), sizes(view.out_shape(), "its size")
    mode, how = view.attrs.get("mode", "nearest"), _coordinates(view)
    if before[0] != after[0] or view.attrs.get("antialias") or how == "tf_crop_and_resize":
        raise Unconvertible("it resizes the channel axis, crops or filters")
    if view.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unconvertible("all of its axes take one scale, whatever their sizes are rounded to")
    target, x = tuple(after[1:]), b.input(view, 0)
    whole = all(new % old == 0 for old, new in zip(before[1:], target, strict=True))
    # At whole factors f, all of these compute floor(i / f).
    plain = ("floor",) if how == "asymmetric" else ("round_prefer_floor", "round_prefer_ceil")
    if mode == "nearest" and whole and how in ("asymmetric", "half_pixel") and _rounding(view) in plain:
        factors = tuple(float(new // old) for old, new in zip(before[1:], target, strict=True))
        return b.call(F.interpolate, x, scale_factor=factors, mode="nearest")
    if mode == "linear" and how in ("align_corners", "half_pixel"):
        name = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(target)]
        return b.call(F.interpolate, x, size=target, mode=name, align_corners=how == "align_corners")
    if mode not in ("linear", "nearest"):
        raise Unconvertible(f"{mode} resizing is not torch's")
    for axis, (old, new) in enumerate(zip(before[1:], target, strict=True), start=2):
        if old != new:
            x = _resized(view, b, x, axis, _places(old, new, how), old, mode)
    return x


def _coordinates(view: View) -> str:
    """Return how a position in the output is mapped to the input; see the Resize specification."""
    if view.op == "Upsample" or view.node.version < 11:
        return "asymmetric"
    how = str(view.attrs.get("coordinate_transformation_mode", "half_pixel"))
    out = view.out_shape() or ()
    if how == "pytorch_half_pixel" and 1 not in out[2:]:
        return "half_pixel"
    return how


def _rounding(view: View) -> str:
    if view.op == "Upsample" or view.node.version < 11:
        return "floor"
    return str(view.attrs.get("nearest_mode", "round_prefer_floor"))


def _places(old: int, new: int, how: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return float64[new]: where each output lies among the inputs."""
    index, scale = np.arange(new, dtype=np.float64), new / old
    if how == "align_corners":
        return index * (old - 1) / max(1, new - 1)
    if how == "asymmetric":
        return index / scale
    if how == "half_pixel_symmetric":
        raise Unconvertible(f"{how} coordinates are not known")
    places = (index + 0.5) / scale - 0.5
    return places if how == "half_pixel" or new > 1 else places * 0


_ROUND: Mapping[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda places: np.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: np.floor(places + 0.5),
}
"""Resize's ways to round to the nearest input."""


def _resized(
    view: View, b: Builder, x: fx.Node, axis: int, places: np.ndarray[Any, Any], old: int, mode: str
) -> fx.Node:
    name = f"{view.node.name}_{axis}"
    if mode == "nearest":
        near = _ROUND[_rounding(view)](places)
        return b.call(torch.index_select, x, axis, b.stored(f"{name}_near", near.clip(0, old - 1).astype(np.int64)))
    low = np.floor(places)
    share = (places - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(len(view.shape(0) or ()))])
    ends = [
        b.call(torch.index_select, x, axis, b.stored(f"{name}_{side}", (low + side).clip(0, old - 1).astype(np.int64)))
        for side in (0, 1)
    ]
    weights = [b.stored(f"{name}_share_{side}", part) for side, part in enumerate((1 - share, share))]
    return b.call(torch.add, *(b.call(torch.mul, end, weight) for end, weight in zip(ends, weights, strict=True)))
