"""Sequences that are made to be taken apart: SplitToSequence whose pieces are picked by number.

Exporters write torch.split and torch.chunk like this before they optimise. Owns what is known of the
pieces (``FileFacts.pieces``) and the two rows of the table in table.py: to the passes it is a Split.
Sequences that anything else reads are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunec.frontends.onnx.loading.nodes import SourceNode
from prunec.frontends.onnx.ops.draft import Draft, one, opaque
from prunec.frontends.onnx.sizes.view import FileFacts, View, at, ints
from prunec.ir.graph import Dim, Value

SEQUENCE = "it makes or reads a sequence of tensors"


def taken_apart(nodes: Sequence[SourceNode], outputs: Iterable[str]) -> frozenset[str]:
    """Return the results of SplitToSequence that nothing but SequenceAt reads."""
    made = {node.outputs[0] for node in nodes if node.op == "SplitToSequence" and not node.domain and node.outputs}
    if not made:
        return frozenset()
    others = {name for node in nodes if node.op != "SequenceAt" for name in node.inputs}
    return frozenset(made.difference(outputs, others, *(node.captured for node in nodes)))


def learn_pieces(view: View, facts: FileFacts, followed: frozenset[str]) -> str:
    """Record the pieces of a sequence, or the shape of one that is picked; return the name that is known now."""
    if view.op == "SplitToSequence" and view.outputs[0] in followed:
        _name_pieces(view, facts)
    elif view.op == "SequenceAt":
        piece = _picked(view)
        if piece:
            found = facts.values[piece]
            facts.values[view.outputs[0]] = Value(view.outputs[0], found.shape, found.dtype)
            return view.outputs[0]
    return ""


def _name_pieces(view: View, facts: FileFacts) -> None:
    shape, axis = view.shape(0), view.axis(0)
    sizes = _sizes(view, at(shape, axis))
    if shape is None or axis is None or sizes is None:
        return
    whole = facts.values.get(view.inputs[0])
    pieces = tuple(f"{view.outputs[0]}/{number}" for number in range(len(sizes)))
    for name, size in zip(pieces, sizes, strict=True):
        facts.values[name] = Value(name, (*shape[:axis], size, *shape[axis + 1 :]), whole.dtype if whole else "")
    facts.pieces[view.outputs[0]] = pieces


def _sizes(view: View, extent: Dim) -> list[int] | None:
    """Return the sizes of the pieces: a list, or one size for all of them and less for the last."""
    if not isinstance(extent, int):
        return None
    if not view.has(1):
        return [1] * extent if view.attrs.get("keepdims", 1) else None
    sizes = ints(view.setting("", 1))
    if sizes is None or any(size < 1 for size in sizes):
        return None
    if view.rank(1) == 0:
        sizes = [min(sizes[0], extent - start) for start in range(0, extent, sizes[0])]
    return sizes if sum(sizes) == extent else None


def _picked(view: View) -> str:
    """Return the piece that SequenceAt picks; "" where that is not known."""
    pieces, position = view.facts.pieces.get(view.inputs[0], ()), view.constant(1)
    place = int(position.ravel()[0]) if position is not None and position.size == 1 else len(pieces)
    return pieces[place] if -len(pieces) <= place < len(pieces) else ""


def split_to_sequence(view: View) -> Sequence[Draft]:
    """SplitToSequence."""
    pieces, axis = view.facts.pieces.get(view.outputs[0]), view.axis(0)
    if pieces is None:
        return opaque(view, SEQUENCE)
    sizes = [at(view.facts.shape(name), axis) for name in pieces]
    return [draft._replace(outputs=pieces) for draft in one(view, "split", axis=axis, sizes=sizes)]


def sequence_at(view: View) -> Sequence[Draft]:
    """SequenceAt."""
    piece = _picked(view)
    return [Draft("identity", (piece,), view.outputs, {}, (-1,))] if piece else opaque(view, SEQUENCE)
