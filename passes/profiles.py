"""Profiles: channels that are not constant, but a constant times one map that they share.

Two filters of a layer of which one is a multiple of the other make such channels, and so do constants that are padded
with zeros, or averaged together with padded zeros: they are uneven at the border, all of them in the same way. Channel
k is then coefficient_k · p, with one map p for all of them, for any input of any size, and what reads them can take
one for another (passes/selection/carriers.py). Owns the forward sweep that finds them, and what contractions make of
them; passes/filters.py compares weights, passes/rules/profiles/ has all other ops, passes/constants.py knows the
constants, passes/reads.py takes the result to the contractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from prunec.ir.arrays import Array, Floats, Ids
from prunec.ir.contractions import bias_of, channel_axis, is_affine, is_spatial, read_axis
from prunec.ir.graph import Graph, Node
from prunec.passes.constants import Constants
from prunec.passes.filters import families, is_placeholder, may_have_families, same_within
from prunec.passes.rules.arrays import along, lift, others, stretched, uniform
from prunec.passes.rules.profiles.at import At, Keys, Profile, Rule, alike
from prunec.passes.rules.profiles.table import PROFILE_RULES
from prunec.passes.rules.weights import Weight

SHAPED = ("pad", "avg_pool")
"""Ops that make maps of constants."""

_CONSTANT: Ids = np.zeros((), dtype=np.int64)


def profiles(graph: Graph, constants: Constants, rules: Mapping[str, Rule] = PROFILE_RULES) -> Mapping[str, Profile]:
    """Find the values in which channels share a map other than 1.

    Requires: nodes in topological order; ``constants`` of the same graph.
    Ensures:  within a value, elements of equal key differ by their coefficients' ratio only, for any input.
    Cost: linear in nodes and in rows of weights; in elements of weights where rows are multiples.
    """
    found: dict[str, Profile] = {}
    keys = Keys()
    fixed = graph.fixed_values()
    with np.errstate(invalid="ignore"):
        for node in graph.nodes:
            weight = constants.weights.get(node.name) if is_affine(node) else None
            if found.keys().isdisjoint(node.inputs) and not (
                node.op in SHAPED if weight is None else may_have_families(weight.taps)
            ):
                continue
            if not node.outputs or fixed.issuperset(node.outputs):
                continue
            at = _at(graph, node, constants, found, keys)
            if at is None:
                continue
            made = [_contracted(at, weight)] if weight is not None else rules[node.op](at)
            found.update({name: each for name, each in zip(node.outputs, made, strict=False) if name and each})
    return MappingProxyType(found)


def _at(graph: Graph, node: Node, constants: Constants, found: Mapping[str, Profile], keys: Keys) -> At | None:
    """Return what a rule gets; None where a rank is unknown."""
    ins = [graph.shape(name) if name else () for name in node.inputs]
    outs = [graph.values[name].shape if name else () for name in node.outputs]
    known = [shape for shape in (*ins, *outs) if shape is not None]
    if len(known) < len(ins) + len(outs):
        return None
    dtype = graph.values[node.outputs[0]].dtype
    return At(
        node=node,
        parts=tuple(_part(name, constants, found) if name else None for name in node.inputs),
        in_shapes=tuple(known[: len(ins)]),
        out_shapes=tuple(known[len(ins) :]),
        keys=keys,
        within=same_within(dtype),
        is_float=dtype.startswith(("float", "bfloat")),
        still=constants.of(node.outputs[0]),
    )


def _part(name: str, constants: Constants, found: Mapping[str, Profile]) -> Profile | None:
    """Return what is known of a value: its maps, and the constants beside them."""
    part, known = found.get(name), constants.known.get(name)
    if part is None:
        known = constants.of(name)
        return None if known is None else Profile(known, np.broadcast_to(_CONSTANT, known.shape))
    if known is None:
        return part
    known = uniform(lift(known, part.keys.ndim), others(part.keys.ndim, *part.axes))
    told = np.broadcast_to(~np.isnan(known), part.keys.shape)
    return Profile(np.where(told, known, part.coefficients), np.where(told, 0, part.keys))


# --- contractions -------------------------------------------------------------------------------------


def _contracted(at: At, weight: Weight) -> Profile | None:
    """Return which outputs are multiples of one map: those whose rows of the weight are, with their biases."""
    axis = channel_axis(at.node, at.rank)
    if at.rank < 2 or weight.num_outputs < 2 or not at.is_float or at.out_shapes[0][axis] != weight.num_outputs:
        return None
    if weight.taps.shape[2] > 1 and is_placeholder(weight.taps):
        return None
    taps, groups, extra = _as_maps(at, weight)
    still = None if at.still is None else uniform(at.still, others(at.still.ndim, axis))
    if still is not None and still.ndim == at.rank:
        groups = np.where(np.isnan(stretched(still.ravel(), groups.size)), groups, -1)
    first, factors = families(taps, groups, at.within)
    if not (first >= 0).any():
        return None
    scale, shift = (at.node.attrs.get(name, 1) for name in ("alpha", "beta"))
    bias = _bias(at, axis, groups.size)
    if bias is None or not scale:
        return None
    factors = factors * extra
    ratio = shift * bias / (scale * factors)
    families_of = np.where(first >= 0, first, -1)
    labels = alike([families_of], ratio, at.within)
    known = (first >= 0) & np.isfinite(ratio)
    varying = np.ones(groups.size, dtype=np.int64)  # a row that reads something, and is no constant
    made = at.new([varying], [families_of, labels], np.where(known, scale * factors, np.nan))
    if made is None:
        return None
    return Profile(along(made.coefficients, axis, at.rank), along(made.keys, axis, at.rank))


def _as_maps(at: At, weight: Weight) -> tuple[Array, Ids, Floats]:
    """Return a weight on the maps of its input instead of its channels, which rows to compare, and each row's factor.

    Channels that are multiples of one map are taken together at the first of them. Where each convolution group reads
    one channel, groups that read multiples of one map are compared, and the factor is the channel's.
    """
    groups, outs, per_group = weight.taps.shape[:3]
    numbers, ones = np.repeat(np.arange(groups), outs), np.ones(groups * outs)
    x = _channels_read(at, weight.num_inputs)
    if x is None:
        return weight.taps, numbers if outs > 1 else np.full(groups, -1), ones
    coefficients, keys = x
    if per_group == 1:
        places = np.where(keys > 0, weight.num_inputs + keys, np.where(keys < 0, keys, np.arange(keys.size)))
        places = np.unique(places, return_inverse=True)[1]
        factor = np.where(keys != 0, coefficients, 1.0)
        return weight.taps, np.repeat(places, outs), np.repeat(factor, outs)
    taps = weight.taps.astype(np.float64)
    for group in range(groups):
        here, there = keys.reshape(groups, -1)[group], coefficients.reshape(groups, -1)[group]
        constant = (here == 0) & ~np.isnan(there)
        for key in np.unique(here[~np.isnan(there)]).tolist():
            at_key = np.flatnonzero(constant if key == 0 else here == key)
            if at_key.size == 1:
                continue
            total = np.einsum("oit,i->ot", taps[group][:, at_key], there[at_key])
            taps[group][:, at_key] = 0.0
            taps[group][:, at_key[0]] = total
    return taps, numbers, ones


def _channels_read(at: At, size: int) -> tuple[Floats, Ids] | None:
    """Return (coefficients, keys) of each input channel of a contraction, NaN where unknown; None without any map."""
    part = at.parts[0]
    if part is None or not part.keys.any():
        return None
    if part.axes != (read_axis(at.node, part.keys.ndim),) or part.keys.size != size:
        return None
    return part.coefficients.ravel().astype(np.float64), part.keys.ravel()


def _bias(at: At, axis: int, size: int) -> Floats | None:
    """Return float64[C_out], NaN where it is not a known number per channel; None where that is everywhere."""
    if not bias_of(at.node):
        return np.zeros(size)
    part = at.parts[2]
    if part is None or part.keys.any():
        return None
    bias = part.coefficients
    if not is_spatial(at.node):
        bias = uniform(lift(bias, at.rank), others(at.rank, axis)).ravel()
    if bias.size not in (1, size):
        return None
    return stretched(np.asarray(bias.ravel(), dtype=np.float64), size)
