"""Profile rules of normalisations per channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunec.passes.rules.profiles.at import At, Profile, alike
from prunec.passes.rules.profiles.elementwise import copies, operands, ratio_of


def batch_norm(at: At) -> Sequence[Profile | None]:
    """An affine map: what is added has to be in proportion to the factor; its own statistics pass copies only."""
    axis, attrs = at.node.attrs.get("axis", 1), at.node.attrs
    given = [index for index, name in enumerate(at.node.inputs) if name]
    if attrs.get("training") or len(at.node.inputs) < 5 or 3 not in given or 4 not in given:
        return instance_norm(at)
    parts = operands(at, given, axis)
    if parts is None or any(part.keys.any() for part in parts[1:]):
        return [None]
    vectors = {index: part.coefficients for index, part in zip(given, parts, strict=True)}
    x, none = parts[0], np.zeros((1,) * at.rank)
    with np.errstate(all="ignore"):
        scale = vectors.get(1, none + 1) / np.sqrt(vectors[4] + attrs.get("eps", 1e-5))
        shift, beta = vectors[3] * scale, vectors.get(2, none)
        lead = x.coefficients * scale
        sizes = (np.abs(beta) + np.abs(shift)) / np.abs(lead)
    ratio = ratio_of(beta - shift, lead)
    marks = [alike([x.keys], ratio, at.within, sizes)]
    return [at.new([x.keys], marks, np.where(np.isnan(ratio), np.nan, lead))]


def instance_norm(at: At) -> Sequence[Profile | None]:
    """What has its own statistics per channel passes copies, with the same gamma and beta."""
    axis = at.node.attrs.get("axis", 1)
    given = [index for index, name in enumerate(at.node.inputs[:3]) if name]
    parts = operands(at, given, axis)
    if parts is None or parts[0].axes != (axis,):
        return [None]
    return [copies(at, parts)]
