"""What an analysis, a pruning and a validation found, as plain data.

Owns the frozen result types and their JSON form (the keys are part of the command line's contract).
Nothing here computes: prunec/api.py and prunec/check/validate.py fill these in, cli/render.py shows them as
tables, prunec/report/run_page.py as a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def plain(value: Any) -> Any:
    """Return ``value`` as JSON data: dataclasses become objects, tuples become arrays."""
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class ChannelCounts:
    """How many channels a network has, of which kinds.

    ``total`` counts every output channel of every contraction once; ``prunable + pinned == total``.
    ``constant`` and ``dead`` count channels of either kind, whether or not they can be removed.
    """

    total: int = 0
    prunable: int = 0
    pinned: int = 0
    constant: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Removable:
    """What exact removal would remove: output channels of contractions, parameters, MACs.

    ``multiples`` counts those among the channels that leave because they are multiples of channels that stay.
    """

    channels: int = 0
    params: int = 0
    macs: int = 0
    multiples: int = 0


@dataclass(frozen=True, slots=True)
class GroupMember:
    """``count`` indices of one parameter axis that belong to a coupled group.

    ``node`` reads the parameter and ``op`` is that node's canonical op.
    """

    param: str
    axis: int
    count: int
    node: str
    op: str


@dataclass(frozen=True, slots=True)
class Group:
    """Coupled channels: the same index of all members stays or is removed together.

    ``params_per_channel`` and ``macs_per_channel`` are the cost of one channel of the group, as a mean
    if its channels differ.
    """

    id: int
    channels: int
    prunable: bool
    params_per_channel: float
    macs_per_channel: float
    members: tuple[GroupMember, ...] = ()


@dataclass(frozen=True, slots=True)
class PinReport:
    """Channels that must stay: the node that forbids their removal, its op, why, and how many."""

    node: str
    op: str
    reason: str
    channels: int


@dataclass(frozen=True, slots=True)
class LayerChannels:
    """Output channels of one contraction, by index."""

    node: str
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Channels that are constant or dead but have to stay, with the node that holds them.

    ``channels`` counts coupled channels, each once; ``layers`` tells which output channels of which
    layers are constant or dead among them.
    """

    node: str
    op: str
    reason: str
    channels: int
    layers: tuple[LayerChannels, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One contraction with the state of its output channels.

    Args:
        node: its name in the user's model.
        op: its canonical op.
        channels: its output channels; ``prunable + pinned == channels``.
        constant, dead: the number of each among them.
        params, macs: of the layer (integers, batch 1).
        groups: the ids of the groups that its output channels belong to.
        inputs: the layers whose outputs reach it without passing another layer.
        note: why channels of it are pinned or survive, or "".
    """

    node: str
    op: str
    channels: int
    prunable: int
    pinned: int
    constant: int
    dead: int
    params: int
    macs: int
    groups: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What ``prunec analyze`` tells about a network.

    Args:
        model: the name or path that was asked for.
        frontend: "fx", "export" or "onnx".
        nodes: canonical ops in the graph.
        params: elements of parameters, without literals.
        macs: multiply-accumulates of one input, batch 1.
        activations: elements written by all ops, batch 1.
        notes: what a person must know to read the numbers.
    """

    model: str
    frontend: str
    nodes: int
    params: int
    macs: int
    activations: int
    channels: ChannelCounts
    removable: Removable
    groups: tuple[Group, ...] = ()
    pins: tuple[PinReport, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    layers: tuple[LayerSummary, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json_dict(self) -> dict[str, Any]:
        """Return the analysis as JSON data; the keys are the field names."""
        return _object(self)


@dataclass(frozen=True, slots=True)
class Cost:
    """The size of a network: parameters, MACs and activation elements (batch 1), contraction output channels."""

    params: int
    macs: int
    activations: int
    channels: int


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Output channels of one contraction before and after; ``after`` is 0 if the layer was removed."""

    node: str
    op: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Expanded:
    """One operand of a sum that lost channels: its other channels are put back in place where ``node`` reads it.

    ``channels`` counts those that the operand no longer computes, ``kept`` the others.
    """

    node: str
    op: str
    channels: int
    kept: int


@dataclass(frozen=True, slots=True)
class GateFolded:
    """One product with a gate: ``channels`` of its map are constant and were folded past it."""

    node: str
    op: str
    channels: int


@dataclass(frozen=True, slots=True)
class Validation:
    """Two models, the same inputs: how far apart their outputs are and how long each took.

    An error is the largest absolute difference over all elements of an output; relative, it is divided
    by that output's largest magnitude in the first model (L∞ over L∞, so a value near zero does not
    count as a large relative error). The result is that of the worst output and input family.

    Args:
        max_abs_error: in the output's own units.
        max_rel_error: as above; NaN never passes.
        tolerance: the largest relative error that passes.
        double_rel_error: the same in double precision, if the models' own could not decide; else None.
        families: the relative error per input family.
        left_out: families that there was no time for.
        inputs: how many inputs were compared.
        seconds: of the comparison and the timing.
        vacuous: every output of the first model was constant in every family, so the comparison proves nothing.
        latency_a_ms, latency_b_ms: milliseconds of the faster runs of the first and second model, None where
            not measured.
        timed_runs: runs of each model.
        provider_asked, provider_ran: the execution provider ("cpu", "cuda", "torch"); what ran is read
            from the session, never assumed.
        passed: the error is within the tolerance, or the models compute the same in double precision.
        notes: sentences a person should read (a fall-back, a vacuous family).
    """

    max_abs_error: float
    max_rel_error: float
    tolerance: float
    families: dict[str, float] = field(default_factory=dict)
    double_rel_error: float | None = None
    left_out: tuple[str, ...] = ()
    inputs: int = 0
    seconds: float = 0.0
    vacuous: bool = False
    latency_a_ms: float | None = None
    latency_b_ms: float | None = None
    timed_runs: int = 0
    provider_asked: str = "cpu"
    provider_ran: str = "cpu"
    passed: bool = True
    notes: tuple[str, ...] = ()

    @property
    def latency_ratio(self) -> float | None:
        """How many times faster the second model is; None if latency was not measured."""
        if self.latency_a_ms is None or not self.latency_b_ms:
            return None
        return self.latency_a_ms / self.latency_b_ms

    def to_json_dict(self) -> dict[str, Any]:
        """Return the validation as JSON data; a value that is not finite becomes null."""
        return {**_object(self), "latency_ratio": self.latency_ratio}


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What calibration data allowed beyond what could be proven.

    Args:
        data: the folder.
        tolerance: largest distance from its constant at which a channel counted as constant, as a fraction of
            its tensor's largest magnitude over all data.
        samples: how many were run.
        held_out: how many of them were held out to test the verdict of the others; 0 if there are too few.
        constant_channels: coupled channels that are constant on all samples.
        contradicted_channels: further ones that looked constant until the held-out samples; they stay. Many
            of them mean that other data may contradict removed channels too.
        removed_channels: output channels of contractions that only the data allowed to remove.
    """

    data: str
    tolerance: float
    samples: int
    held_out: int
    constant_channels: int
    contradicted_channels: int
    removed_channels: int


@dataclass(frozen=True, slots=True)
class OutputAgreement:
    """How far one output of the pruned network is from the original's on held-out inputs.

    Args:
        name: the output.
        error: root mean square of the difference over that of the original's output; of integers the share
            that differs.
        argmax: if it looks like class scores, the share of samples whose largest score is the same; else None.
        iou: if it looks like a mask, the intersection over union over all samples (of classes other than the first,
            or of the foreground); else None.
        not_finite: the share of its elements that are NaN or infinite in the pruned network only; the error leaves
            them out.
    """

    name: str
    error: float
    argmax: float | None = None
    iou: float | None = None
    not_finite: float = 0.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the pruned network does on held-out inputs.

    Args:
        samples: how many; 0 if there were too few to hold any out.
        outputs: each output, in order.
        accuracy_before, accuracy_after: with labels, the share of right answers of either network; else None.
    """

    samples: int
    outputs: tuple[OutputAgreement, ...] = ()
    accuracy_before: float | None = None
    accuracy_after: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """How a budget of time was met.

    Args:
        asked, share: of the original's time, in (0, 1], as asked for and as measured.
        original_ms, pruned_ms: the medians behind the share.
        provider: ONNX Runtime's execution provider.
        tries: how many prunings were timed.
        untimed: layers that could not be timed by themselves.
    """

    asked: float
    share: float
    original_ms: float
    pruned_ms: float
    provider: str
    tries: int
    untimed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What one pruning did.

    Args:
        model: the name or path that was asked for.
        before, after: the cost, recounted on the result.
        removed_channels: output channels of contractions that were removed.
        layers: every contraction, in graph order.
        carriers: constant channels that stay so that zero-padded borders remain exact.
        blocked: constant or dead channels that survive, with the node that holds them.
        pins: channels that could not be considered.
        exact: the result computes the same function, up to float rounding.
        reason: how the channels were chosen, one sentence.
        border_error: in ``bias`` mode, the largest relative output difference that was measured.
        validation: the check against the original; None if it was left out.
        message: what a person must know; always set if nothing was removed.
        calibration: what was learnt from data; None without data.
        exact_on_data: the result computes the same function at least on the calibration data, within the
            tolerance; that was checked unless validation was left out.
        expanded: operands of sums that were expanded (``--residual expand``).
        gates: products whose constant channels were folded past the gate (``--gates fold``).
        notes: what a person must know to read the numbers.
        agreement: with a criterion and data: the result against the original on held-out samples; else None.
        latency: the measured times, if a share of the time was asked for; else None.
        multiples: how many of the removed channels were multiples of channels that stay, which take them over.
        branches: the sums (nodes) of which one operand went as a whole, every layer of it; its mean is added instead.
    """

    model: str
    before: Cost
    after: Cost
    removed_channels: int
    layers: tuple[LayerChange, ...] = ()
    carriers: int = 0
    blocked: tuple[Blocked, ...] = ()
    pins: tuple[PinReport, ...] = ()
    exact: bool = True
    reason: str = ""
    border_error: float | None = None
    validation: Validation | None = None
    message: str = ""
    calibration: CalibrationReport | None = None
    exact_on_data: bool = False
    expanded: tuple[Expanded, ...] = ()
    gates: tuple[GateFolded, ...] = ()
    notes: tuple[str, ...] = ()
    agreement: Agreement | None = None
    latency: Latency | None = None
    multiples: int = 0
    branches: tuple[str, ...] = ()

    def to_json_dict(self) -> dict[str, Any]:
        """Return the report as JSON data; ``validation`` is null if it was left out."""
        document = _object(self)
        document["validation"] = None if self.validation is None else self.validation.to_json_dict()
        return document


def _object(value: Any) -> dict[str, Any]:
    document = finite(plain(value))
    assert isinstance(document, dict)
    return document


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, since JSON has neither."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value
