"""PrunePlan: what stays on each parameter axis, and where each removed constant goes. Pure data.

Owns the data type and its JSON form. ``passes/selection/select.py`` and ``passes/selection/carriers.py`` make plans,
``passes/lowering/lower.py`` turns one into edits, the backends carry those out; a plan does not know who applies it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from prunec.errors import BadPlan

FORMAT_VERSION = 3
"""Plans are written as the oldest version that holds what they say: 1 for what every prunec reads, 2 with earlier
plans or rewrites, 3 with an ``example`` or weights that were fitted."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A graph input as it was traced: its name, shape (batch included) and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class AxisKeep:
    """What stays of one parameter axis.

    Args:
        param: the parameter's name in the model.
        axis: the axis that is sliced.
        size: its size before.
        keep: the indices that stay, ascending.
    """

    param: str
    axis: int
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupedKeep:
    """What stays of the per-group input axis of a grouped convolution's weight.

    Convolution group j of the original keeps the slots ``keep[j]`` of axis ``axis``; an empty tuple
    means that the whole group goes. All non-empty tuples are equally long.
    """

    param: str
    axis: int
    keep: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Where the constants of removed channels go at one contraction.

    ``bias``: add Σ_k constants[k] · Σ_taps W[:, positions[k]] to the bias (made if there is none).
    ``running_mean``: subtract the same sum from the running mean of the BatchNorm ``target``.
    ``carrier``: add Σ_k (constants[k] / carrier_constant) · W[:, positions[k]] to W[:, carrier].

    Args:
        node: the contraction, by IR node name.
        kind: as above.
        positions: indices on the contracted axis of the node's input, before removal.
        constants: the value each of them had, one per position.
        target: ``running_mean``: that parameter's name. ``bias``: the bias parameter, "" to make one.
        carrier, carrier_constant: for ``carrier``: the position that stays, and its value.
    """

    node: str
    kind: Literal["bias", "running_mean", "carrier"]
    positions: tuple[int, ...]
    constants: tuple[float, ...]
    target: str = ""
    carrier: int = -1
    carrier_constant: float = 0.0


@dataclass(frozen=True, slots=True)
class ConstantInput:
    """An input of a node that had become constant, and is read from a stored tensor from now on.

    ``value`` holds the kept channels, flat in C order; ``shape`` broadcasts against the pruned input.
    """

    node: str
    index: int
    shape: tuple[int, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Expansion:
    """Channels that one operand of an elementwise op no longer computes: they are put back where the op reads it.

    Args:
        node: the op, by IR node name.
        index: which of its operands.
        axis: the operand's axis of channels.
        positions: the channels that are put back, ascending indices on that axis before removal.
        constants: the value of each of them.
    """

    node: str
    index: int
    axis: int
    positions: tuple[int, ...]
    constants: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GateFold:
    """Constants times a gate: they reach the convolutions that read the product past it.

    Where channel k of one operand is constants[k], the product is that times the gate. A 1x1 convolution on the
    gate with constants[k] · Σ_taps W[:, k] adds what a reader with the weight W would have made of it.

    Args:
        product: the product, by IR node name.
        gate: which of its operands is the gate, of one number per channel.
        readers: all that reads the product: convolutions without padding, by IR node name.
        positions: the channels, ascending indices before removal.
        constants: what the other operand is there.
    """

    product: str
    gate: int
    readers: tuple[str, ...]
    positions: tuple[int, ...]
    constants: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's content: its shape, numpy's name of its dtype (floats only) and its bytes, little-endian, C order.

    In JSON the bytes are base64: a third more than they are, one file, and the same to the bit when read again.
    """

    shape: tuple[int, ...]
    dtype: str
    data: bytes

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32", "float64"):
            raise ValueError(f"a tensor of {self.dtype}")
        if len(self.data) != math.prod(self.shape) * int(self.dtype.removeprefix("float")) // 8:
            raise ValueError(f"{len(self.data)} bytes are no {self.dtype}[{'x'.join(map(str, self.shape))}]")


@dataclass(frozen=True, slots=True)
class Refit:
    """A contraction that makes up for channels that went: what it computes with from now on.

    Args:
        node: the contraction, by IR node name.
        weight: the parameter that holds its weight; "" where that stays.
        content: what becomes of that, sliced as the plan slices it; None where it stays.
        kind: where the constant part goes: "bias" or "running_mean" of a BatchNorm behind it; "none".
        target: that parameter, "" for a bias of its own, which is made and added to what there is.
        vector: its content, sliced; None for "none".
    """

    node: str
    weight: str
    content: Tensor | None
    kind: Literal["bias", "running_mean", "none"]
    target: str = ""
    vector: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """A complete, framework-free description of one pruning.

    ``exact`` tells whether the pruned network computes the same function (up to float rounding);
    ``reason`` says in one sentence how the channels were chosen. ``earlier`` are the plans that come before this
    one, in order, where a network was pruned more than once: each is of the network that those before it leave.
    ``example`` is how the network takes its inputs, as JSON data; None for tensors by position. ``held`` names the
    tensors beside its state that the network read (a cache that was filled).
    """

    inputs: tuple[InputSpec, ...]
    keeps: tuple[AxisKeep, ...] = ()
    grouped: tuple[GroupedKeep, ...] = ()
    folds: tuple[Fold, ...] = ()
    constant_inputs: tuple[ConstantInput, ...] = ()
    exact: bool = True
    reason: str = ""
    earlier: tuple[PrunePlan, ...] = ()
    expansions: tuple[Expansion, ...] = ()
    gate_folds: tuple[GateFold, ...] = ()
    example: Mapping[str, Any] | None = field(default=None, hash=False)
    refits: tuple[Refit, ...] = ()
    held: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True when applying the plan changes nothing."""
        own = self.keeps or self.grouped or self.folds or self.constant_inputs or self.refits or self.is_rewritten
        return not own and all(plan.is_empty for plan in self.earlier)

    @property
    def is_rewritten(self) -> bool:
        """True when the graph is rewritten before anything is removed (passes/rewrites/rewrite.py)."""
        return bool(self.expansions or self.gate_folds)

    @property
    def _is_refitted(self) -> bool:
        return bool(self.refits) or any(plan._is_refitted for plan in self.earlier)

    def after(self, *plans: PrunePlan) -> PrunePlan:
        """Return the plan that applies ``plans``, and then this one; it is exact where all of them are."""
        return replace(self, earlier=(*plans, *self.earlier), exact=self.exact and all(p.exact for p in plans))

    def to_json(self) -> str:
        """Return the plan as one JSON document (floats round-trip exactly)."""
        document = {"format": "prunec-plan", "version": FORMAT_VERSION, **_plain(self)}
        if self.example is None:
            del document["example"]
        if not self.held:
            del document["held"]
        if not self._is_refitted:
            del document["refits"]
        if self.example is None and not self._is_refitted:
            document["version"] = 2
            if not self.is_rewritten and not self.earlier:
                document["version"] = 1
                del document["expansions"], document["gate_folds"], document["earlier"]
        return json.dumps(document, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> PrunePlan:
        """Read ``to_json``'s document.

        Raises:
            BadPlan: not JSON, not a plan, or a version this prunec does not know.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadPlan("the plan is not JSON", why=str(error)) from error
        if not isinstance(document, dict) or document.get("format") != "prunec-plan":
            raise BadPlan("the document is not a prunec plan", do="give the plan.json of a run folder")
        if document.get("version") not in range(1, FORMAT_VERSION + 1):
            raise BadPlan(
                f"the plan has format version {document.get('version')}",
                why=f"this prunec reads versions 1 to {FORMAT_VERSION}",
                do="use the prunec that wrote it, or prune again",
            )
        try:
            return _plan(document)
        except (KeyError, TypeError, ValueError) as error:
            raise BadPlan("the plan is incomplete or damaged", why=repr(error)) from error

    @classmethod
    def load(cls, path: str | Path) -> PrunePlan:
        """Read a plan.json."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadPlan(f"cannot read the plan {path}", why=str(error)) from error
        return cls.from_json(text)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _plan(document: Mapping[str, Any]) -> PrunePlan:
    kinds = ("bias", "running_mean", "carrier")
    if any(fold["kind"] not in kinds for fold in document["folds"]):
        raise ValueError(f"a fold is none of {kinds}")
    return PrunePlan(
        inputs=tuple(InputSpec(i["name"], _ints(i["shape"]), i["dtype"]) for i in document["inputs"]),
        keeps=tuple(AxisKeep(k["param"], k["axis"], k["size"], _ints(k["keep"])) for k in document["keeps"]),
        grouped=tuple(
            GroupedKeep(g["param"], g["axis"], tuple(_ints(slots) for slots in g["keep"])) for g in document["grouped"]
        ),
        folds=tuple(
            Fold(
                f["node"],
                f["kind"],
                _ints(f["positions"]),
                _floats(f["constants"]),
                f["target"],
                f["carrier"],
                f["carrier_constant"],
            )
            for f in document["folds"]
        ),
        constant_inputs=tuple(
            ConstantInput(c["node"], c["index"], _ints(c["shape"]), _floats(c["value"]))
            for c in document["constant_inputs"]
        ),
        exact=bool(document["exact"]),
        reason=str(document["reason"]),
        earlier=tuple(_plan(plan) for plan in document.get("earlier", ())),
        example=document.get("example"),
        expansions=tuple(
            Expansion(e["node"], int(e["index"]), int(e["axis"]), _ints(e["positions"]), _floats(e["constants"]))
            for e in document.get("expansions", ())
        ),
        gate_folds=tuple(
            GateFold(g["product"], int(g["gate"]), tuple(g["readers"]), _ints(g["positions"]), _floats(g["constants"]))
            for g in document.get("gate_folds", ())
        ),
        refits=tuple(_refit(r) for r in document.get("refits", ())),
        held=tuple(map(str, document.get("held", ()))),
    )


def _refit(document: Mapping[str, Any]) -> Refit:
    if document["kind"] not in ("bias", "running_mean", "none"):
        raise ValueError("a refit of a kind that is unknown")
    content, vector = _tensor(document["content"]), _tensor(document["vector"])
    return Refit(document["node"], document["weight"], content, document["kind"], document["target"], vector)


def _tensor(document: Mapping[str, Any] | None) -> Tensor | None:
    if document is None:
        return None
    return Tensor(_ints(document["shape"]), str(document["dtype"]), base64.b64decode(document["data"], validate=True))
