"""Ops that a user teaches: what a rule is given, what it answers, and what is wrong with an answer.

Owns that contract, for both frontends. A rule is one function; ``rules={"mylib::swish": rule}`` goes with a call and
is remembered nowhere. What each canonical op means is in prunec/ir/ops.py.

    def swish(op: TaughtOp) -> Like:
        return Like("silu")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from prunec.errors import BadInput
from prunec.ir.graph import Shape
from prunec.ir.ops import BINARY, CHANNELWISE, ELEMENTWISE, UNARY


@dataclass(frozen=True, slots=True)
class TaughtOp:
    """An op of the user's model, as a rule sees it.

    Args:
        name: "mylib::swish" (torch), "my.domain::Swish" (ONNX).
        inputs: the shape of each tensor that it reads, in order; None where it is not known.
        outputs: the shape of each result, likewise.
        attrs: its other arguments, by name.
    """

    name: str
    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]
    attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Like:
    """What an op is like: the canonical op that treats channels and values the same way.

    Args:
        op: a key of ``LIKES``.
        attrs: the attributes that the canonical op has, see prunec/ir/ops.py.
        inputs: which of the op's tensors it reads, in the canonical order; by default all of them.
        shape: the result's, where the frontend cannot know it: an ONNX op of a custom domain. By default that of the
            first input for ops that keep shapes, and its batch and channels for pooling, resize and sample.
    """

    op: str
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    inputs: tuple[int, ...] | None = None
    shape: Shape | None = None


OpRule = Callable[[TaughtOp], Like | None]
"""What an op is like; None: what it touches stays as it is (a special case that the rule does not cover)."""
OpRules = Mapping[str, OpRule]

NO_RULES: OpRules = MappingProxyType({})

LIKES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(ELEMENTWISE, ()),
        "conv": ("strides", "pads", "dilations", "conv_groups"),
        "matmul": (),
        "batch_norm": ("axis", "eps", "training"),
        "instance_norm": ("axis", "eps"),
        "group_norm": ("axis", "num_groups", "eps"),
        "layer_norm": ("axes", "eps"),
        "max_pool": ("pads", "ceil"),
        "avg_pool": ("pads", "counts_padding"),
        "resize": ("keeps_constants",),
        "sample": (),
        "concat": ("axis",),
        "along": ("kind", "axes"),
        "reduce": ("kind", "axes", "keepdims"),
    }
)
"""Canonical op -> the attributes that it needs. Ops that move channels about are not among them: a backend could not
write a user's op anew for other sizes."""

_FEWEST = MappingProxyType(
    {**dict.fromkeys(BINARY, 2), "where": 3, "prelu": 2, "conv": 2, "matmul": 2, "batch_norm": 5}
)
_SAME_SHAPE = frozenset({*UNARY, "prelu", "batch_norm", "instance_norm", "group_norm", "layer_norm", "along"})


def likeness(rules: OpRules, op: TaughtOp) -> Like | None:
    """Ask the rules what an op is like; None where none of them speaks of it.

    Raises:
        BadInput: a rule raises, or answers with something that is no op, lacks attributes or operands.
    """
    rule = rules.get(op.name, rules.get(op.name.replace("::", ".")))  # the second is how reports write it
    if rule is None:
        return None
    try:
        found = rule(op)
    except Exception as error:
        raise _wrong(op, f"it raised {type(error).__name__}: {error}") from error
    if found is None:
        return None
    if not isinstance(found, Like):
        raise _wrong(op, f"it returned a {type(found).__name__}, not a prunec.ir.taught.Like")
    if found.op not in LIKES:
        raise _wrong(op, f"there is no op {found.op!r} to be like; there are {', '.join(LIKES)}")
    missing = [name for name in LIKES[found.op] if name not in found.attrs]
    if missing:
        raise _wrong(op, f"{found.op} needs the attributes {', '.join(missing)}")
    read = operands(found, op)
    if len(read) < _FEWEST.get(found.op, 1) or any(not 0 <= at < len(op.inputs) for at in read):
        raise _wrong(
            op, f"{found.op} reads {_FEWEST.get(found.op, 1)} tensors or more, and the op has {len(op.inputs)}"
        )
    return found


def operands(found: Like, op: TaughtOp) -> Sequence[int]:
    """Return which of the op's tensors are read, in the canonical order."""
    return range(len(op.inputs)) if found.inputs is None else found.inputs


def shape_of(found: Like, op: TaughtOp) -> Shape | None:
    """Return the result's shape as far as the rule tells it."""
    first = op.inputs[operands(found, op)[0]]
    if found.shape is not None or first is None:
        return found.shape
    if found.op in CHANNELWISE and len(first) > 1:
        return (*first[:2], *[None] * (len(first) - 2))
    return first if found.op in _SAME_SHAPE else None


def _wrong(op: TaughtOp, why: str) -> BadInput:
    return BadInput(f"the rule for {op.name} cannot be used", why=why, do="mend the rule (docs/extending.md)")
