"""Rewrite the sizes that an ONNX file has written in it: one small function per canonical op.

Owns the ONNX side of changed attributes (groups, Reshape targets, Split sizes, Slice bounds, Pad
amounts …), whether a setting is an attribute, a stored tensor or computed while the network runs. Ops
whose sizes adapt by themselves (Flatten, Transpose, pools …) match no row. A setting that is computed
is patched: entries that prunec knows are written out, the others stay as computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from prunec.backends.onnx.surgeon import Surgeon
from prunec.frontends.onnx.sizes.view import Cut, View
from prunec.ir.arrays import Array
from prunec.ir.edits import CannotRewrite
from prunec.ir.graph import Node, Shape

Entries = Mapping[int, int]
"""Place in a setting's list -> the number to write there."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One IR node, at the ONNX node that it came from.

    Args:
        view: the ONNX node, with what is known of its inputs.
        node: the IR node.
        attrs: its canonical attributes that change.
        shapes: new shapes of values and parameters, where they change.
        changed: names of the values whose shape changes, or may.
    """

    surgeon: Surgeon
    view: View
    node: Node
    attrs: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    changed: Callable[[str], bool]

    @property
    def place(self) -> int:
        return self.view.node.place

    def cannot(self, reason: str) -> CannotRewrite:
        return CannotRewrite(self.node.origin, reason)

    def differences(self, name: str) -> Entries:
        """Return the entries of a list attribute that change."""
        before, after = self.node.attrs[name], self.attrs.get(name, self.node.attrs[name])
        return {place: new for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}


def rewrite(sites: Sequence[Site]) -> None:
    """Carry out the changed attributes of one ONNX node, and write out settings that would change with the sizes.

    Args:
        sites: the IR nodes of one ONNX node.

    Raises:
        CannotRewrite: the node's channels have to stay.
    """
    done: set[int] = set()
    for site in sites:
        rule = REWRITES.get(site.node.op)
        if rule is not None and (site.attrs or site.node.op in _BY_SHAPE):
            done.update(rule(site))
    for slot, name in enumerate(sites[0].view.inputs):
        # Inputs that IR nodes read as data are known only where they are literals made of sizes.
        if name and slot not in done:
            write_entries(sites[0], slot, {})


def write_entries(site: Site, slot: int, entries: Entries, attribute: str = "") -> None:
    """Put numbers into a setting, which is an attribute or input ``slot``.

    Where the setting follows from sizes that change, everything that is known of it is written out.
    """
    view = site.view
    if attribute and attribute in view.attrs:
        values = list(view.attrs[attribute])
        for place, number in entries.items():
            values[place] = number
        site.surgeon.set_attribute(site.place, attribute, values)
        return
    if not view.has(slot):
        return
    data = view.data(slot)
    moves = any(map(site.changed, view.facts.roots.get(view.inputs[slot], ())))
    if not entries and not moves:
        return
    if data is None:
        raise site.cannot(f"its input {view.inputs[slot]!r} is computed in a way that is not followed")
    if data.dtype != object:
        known = np.array(data)
        known.ravel()[list(entries)] = list(entries.values())
        site.surgeon.read(site.place, slot, site.surgeon.store(known, view.inputs[slot]))
        return
    _patch(site, slot, data, entries, moves)


def _patch(site: Site, slot: int, data: Array, entries: Entries, moves: bool) -> None:
    """Write known entries over a vector of sizes that is computed while the network runs."""
    unsettled = site.view.facts.unsettled(site.view.inputs[slot])
    numbers = np.zeros(data.size, np.int64)
    computed = np.zeros(data.size, np.int64)
    for place, value in enumerate(data.ravel()):
        if place in entries:
            numbers[place] = entries[place]
        elif isinstance(value, int) and not isinstance(value, bool):
            numbers[place] = value
        elif moves and unsettled is not None and unsettled.ravel()[place]:
            # The frontend lets one such size pass, in Reshape, where -1 says the same.
            if site.view.op != "Reshape" or (numbers == -1).any():
                raise site.cannot("a size that it reads is computed from a number of channels")
            numbers[place] = -1
        else:
            computed[place] = 1
    numbers, computed = numbers.reshape(data.shape), computed.reshape(data.shape)
    surgeon, name = site.surgeon, site.view.inputs[slot]
    if not computed.any():
        surgeon.read(site.place, slot, surgeon.store(numbers, name))
        return
    masked, patched = surgeon.fresh(f"{name}_computed"), surgeon.fresh(name)
    surgeon.insert_before(site.place, _int64_node("Mul", name, surgeon.store(computed, f"{name}_mask"), masked))
    surgeon.insert_before(site.place, _int64_node("Add", masked, surgeon.store(numbers, f"{name}_sizes"), patched))
    surgeon.read(site.place, slot, patched)


def _int64_node(op: str, a: str, b: str, out: str) -> Any:
    return helper.make_node(op, [a, b], [out], name=out)


# --- one function per op; each returns the slots that it has dealt with -----------------------------


def _conv(site: Site) -> Sequence[int]:
    site.surgeon.set_attribute(site.place, "group", int(site.attrs["conv_groups"]))
    return ()


def _group_norm(site: Site) -> Sequence[int]:
    site.surgeon.set_attribute(site.place, "num_groups", int(site.attrs["num_groups"]))
    return ()


def _reshape(site: Site) -> Sequence[int]:
    """Reshape's target. 0 copies the input's new size; -1 takes what is left: both may stay."""
    view = site.view
    if view.op == "Squeeze" and not view.setting("axes", 1) and not view.has(1):
        return _squeeze(site)
    if view.op != "Reshape":
        return ()
    target, entries = view.setting("shape", 1) or [], dict(site.differences("shape"))
    before = site.shapes.get(site.node.inputs[0]) or view.shape(0) or ()
    for place in list(entries):
        written = target[place] if place < len(target) else None
        copies = written == 0 and place < len(before) and before[place] == entries[place]
        if written == -1 or copies:
            del entries[place]
    write_entries(site, 1, entries, "shape")
    return (1,)


def _squeeze(site: Site) -> Sequence[int]:
    """Squeeze without axes takes out every size of 1: name them, for a single channel may be left."""
    before = site.view.shape(0) or ()
    axes = [axis for axis, size in enumerate(before) if size == 1]
    if site.view.node.version < 13:
        site.surgeon.set_attribute(site.place, "axes", axes)
    else:
        site.surgeon.read(site.place, 1, site.surgeon.store(np.array(axes, np.int64), f"{site.view.outputs[0]}_axes"))
    return (1,)


def _expand(site: Site) -> Sequence[int]:
    """Expand's target lines up with the output's last axes; a 1 there leaves the input's size."""
    target = site.view.setting("shape", 1) or []
    offset = len(site.node.attrs["shape"]) - len(target)
    entries = {axis - offset: size for axis, size in site.differences("shape").items() if axis >= offset}
    write_entries(site, 1, {place: size for place, size in entries.items() if target[place] != 1})
    return (1,)


def _full(site: Site) -> Sequence[int]:
    """ConstantOfShape; a uniform tensor that was made in another way becomes one."""
    view = site.view
    if view.op == "ConstantOfShape":
        write_entries(site, 0, site.differences("shape"))
        return (0,)
    value = site.surgeon.traced.graph.values[site.node.outputs[0]]
    shape = site.surgeon.store(np.array(site.attrs["shape"], np.int64), f"{site.node.outputs[0]}_shape")
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    one = TensorProto(data_type=dtype, dims=[1], raw_data=np.full(1, site.node.attrs["value"], value.dtype).tobytes())
    node = helper.make_node("ConstantOfShape", [shape], list(view.outputs), view.node.proto.name, value=one)
    site.surgeon.become(site.place, node)
    return tuple(range(len(view.inputs)))


def _tile(site: Site) -> Sequence[int]:
    write_entries(site, 1, site.differences("repeats"))
    return (1,)


def _split(site: Site) -> Sequence[int]:
    """Split and SplitToSequence; sizes that the node left out are written out."""
    sizes = [int(size) for size in site.attrs["sizes"]]
    if site.view.node.version < 13 and site.view.op == "Split":
        site.surgeon.set_attribute(site.place, "split", sizes)
        return ()
    site.surgeon.set_attribute(site.place, "num_outputs", None)
    like = site.view.inputs[1] if site.view.has(1) else f"{site.view.node.name}_split"
    site.surgeon.read(site.place, 1, site.surgeon.store(np.array(sizes, np.int64), like))
    return (1,)


def _slice(site: Site) -> Sequence[int]:
    """Slice's starts and ends, by the axis that each is for."""
    cuts = site.view.cuts() if site.view.op == "Slice" else None
    if cuts is None:
        if site.attrs:
            raise site.cannot("the axes that it slices are not its own")
        return ()
    at = {cut.axis: place for place, cut in enumerate(cuts)}
    picks = site.attrs.get("picks", {})
    if picks and len(picks) == len(cuts):
        return _picked(site, picks)
    source = ""
    for axis, indices in picks.items():
        source = _picked_before(site, axis, indices, source)
        site.surgeon.read(site.place, 0, source)
    for slot, name, number in ((1, "starts", 0), (2, "ends", _TO_THE_LAST)):
        entries = {at[site.node.attrs["axes"][place]]: number for place, number in site.differences(name).items()}
        whole = {at[axis]: number for axis in picks}
        write_entries(site, slot, {**_counted_from_the_end(site, cuts, name), **entries, **whole}, name)
    if picks:
        write_entries(site, 4, {at[axis]: 1 for axis in picks}, "steps")
    return (1, 2, 4) if picks else (1, 2)


_TO_THE_LAST = 2**31 - 1
"""An end that every version of Slice takes for "to the last"."""


def _picked(site: Site, picks: Mapping[int, Array]) -> Sequence[int]:
    """What is left of cuts with steps has no step any more: a Gather per axis in place of the Slice."""
    *before, (axis, indices) = picks.items()
    source = site.view.inputs[0]
    for other, chosen in before:
        source = _picked_before(site, other, chosen, source)
    inputs = [source, site.surgeon.store(indices, f"{site.view.outputs[0]}_indices")]
    node = helper.make_node("Gather", inputs, list(site.view.outputs), site.view.node.proto.name, axis=axis)
    site.surgeon.become(site.place, node)
    return tuple(range(len(site.view.inputs)))


def _picked_before(site: Site, axis: int, indices: Array, source: str = "") -> str:
    """Pick what is left along one axis in front of the node; return what that makes."""
    source, stem = source or site.view.inputs[0], f"{site.view.outputs[0]}_picked"
    out = site.surgeon.fresh(stem)
    inputs = [source, site.surgeon.store(indices, f"{stem}_indices")]
    site.surgeon.insert_before(site.place, helper.make_node("Gather", inputs, [out], out, axis=axis))
    return out


def _counted_from_the_end(site: Site, cuts: Sequence[Cut], name: str) -> Entries:
    """Return the places that a file counts from the end of an axis that gets shorter, counted from its start."""
    before, after = site.view.shape(0), site.shapes.get(site.node.inputs[0])
    if before is None or after is None:
        return {}
    written = {cut.axis: (place, cut.start if name == "starts" else cut.end) for place, cut in enumerate(cuts)}
    numbers = zip(site.node.attrs["axes"], site.attrs.get(name, site.node.attrs[name]), strict=True)
    return {
        written[axis][0]: number
        for axis, number in numbers
        if before[axis] != after[axis] and number is not None and _counts_back(written[axis][1]) and number >= 0
    }


def _counts_back(entry: Any) -> bool:
    return isinstance(entry, int) and entry < 0


def _gather(site: Site) -> Sequence[int]:
    indices = site.view.constant(1)
    if indices is None:
        raise site.cannot("its indices are computed")
    new = np.asarray(site.attrs["indices"], dtype=indices.dtype)
    site.surgeon.read(site.place, 1, site.surgeon.store(new, site.view.inputs[1]))
    return (1,)


def _scatter_slice(site: Site) -> Sequence[int]:
    """ScatterND's indices are a grid: of the stretch that is overwritten, and the whole of other axes."""
    before, indices = site.view.shape(0), site.view.constant(1)
    after = site.shapes.get(site.node.inputs[0], before)
    if before is None or after is None or indices is None:
        raise site.cannot("its indices are computed")
    count = indices.shape[-1]
    if not site.attrs and before[:count] == after[:count]:
        return ()
    start, end = (site.attrs.get(name, site.node.attrs[name]) for name in ("start", "end"))
    places = [np.arange(size) for size in after[:count] if isinstance(size, int)]
    places[site.node.attrs["axis"]] = np.arange(start, end)
    grid = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).astype(indices.dtype)
    site.surgeon.read(site.place, 1, site.surgeon.store(grid, site.view.inputs[1]))
    return (1,)


def _pad(site: Site) -> Sequence[int]:
    """Pad's amounts; from opset 18 on they may be for some axes only."""
    rank = len(site.node.attrs["pads"]) // 2
    axes = site.view.setting("axes", 3)
    where = [int(axis) % rank for axis in axes] if axes is not None else list(range(rank))
    entries: dict[int, int] = {}
    for place, amount in site.differences("pads").items():
        side, axis = divmod(place, rank)
        entries[side * len(where) + where.index(axis)] = amount
    write_entries(site, 1, entries, "paddings" if "paddings" in site.view.attrs else "pads")
    return (1,)


def _resize(site: Site) -> Sequence[int]:
    """Resize with target sizes: those of axes that lost channels are written anew."""
    after, before = site.shapes.get(site.node.outputs[0]), site.node.attrs.get("sizes")
    if after is None or before is None:
        return ()
    axes = site.view.attrs.get("axes") or list(range(len(before)))
    entries: dict[int, int] = {}
    for place, axis in enumerate(axes):
        size = after[axis]
        if isinstance(size, int) and size != before[axis]:
            entries[place] = size
    write_entries(site, 3, entries)
    return (3,)


def _attention(site: Site) -> Sequence[int]:
    """Attention without a scale divides by the root of a head's size: the one that the weights were trained with."""
    before, after = site.view.shape(0), site.shapes.get(site.node.inputs[0])
    if before is not None and after is not None and before[-1] != after[-1] and "scale" not in site.view.attrs:
        if not isinstance(before[-1], int):
            raise site.cannot("its scale follows from an open size")
        site.surgeon.set_attribute(site.place, "scale", before[-1] ** -0.5)
    return ()


def _mean(site: Site) -> Sequence[int]:
    value = site.node.outputs[0]
    if value not in site.view.outputs:
        raise site.cannot("its result is not the node's own")
    dtype = np.dtype(site.view.facts.values[value].dtype)
    factor = site.surgeon.store(np.asarray(site.attrs["scale"], dtype), f"{value}_scale")
    site.surgeon.add_after(site.place, list(site.view.outputs).index(value), "Mul", factor, f"{value}_scaled")
    return ()


_BY_SHAPE = ("resize", "slice", "attention", "scatter_slice")
"""Ops whose settings follow from shapes alone: lowering gives no attribute for them."""

REWRITES: Mapping[str, Callable[[Site], Sequence[int]]] = MappingProxyType(
    {
        "conv": _conv,
        "conv_transpose": _conv,
        "group_norm": _group_norm,
        "reshape": _reshape,
        "expand": _expand,
        "full": _full,
        "tile": _tile,
        "split": _split,
        "slice": _slice,
        "gather": _gather,
        "scatter_slice": _scatter_slice,
        "pad": _pad,
        "resize": _resize,
        "attention": _attention,
        "reduce": _mean,
    }
)
