"""What a sweep finds, as plain data: sweep.json, ``--json`` and the page are made of it.

Owns the types and their JSON form, both ways: a sweep that was stopped goes on from its own report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunec.report.findings import Agreement, OutputAgreement, finite, plain


@dataclass(frozen=True, slots=True)
class Point:
    """One pruned file.

    Args:
        target: share of the MACs that was asked for.
        file: its name in the sweep's folder; "" where the budget cannot be met, and ``note`` says why.
        macs, params, channels: of the file, batch 1; ``channels`` are output channels of contractions.
        bytes: of the file.
        original_ms, pruned_ms: median latencies, measured in turns.
        agreement: with the original.
    """

    target: float
    file: str = ""
    macs: int = 0
    params: int = 0
    channels: int = 0
    bytes: int = 0
    original_ms: float = 0.0
    pruned_ms: float = 0.0
    agreement: Agreement | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What removing a share of one group's channels costs and saves, nothing else removed.

    Args:
        share: asked for.
        removed: channels that went, of the group; others that had to go with them are not counted.
        error: root mean square of the outputs' difference over the original's, the largest of all outputs.
        macs: multiply-accumulates saved, batch 1.
        microseconds: saved, by the times of single layers.
    """

    share: float
    removed: int
    error: float
    macs: int
    microseconds: float


@dataclass(frozen=True, slots=True)
class GroupCost:
    """A coupled group: channels that live or die together, in all layers that it runs through.

    Args:
        id: as in ``prunec analyze``.
        channels: how many.
        layers: the layers that make or read them, by the names of the user's model.
        patterns: what ``--keep`` takes to leave the group alone.
        steps: what removing parts of it costs; none where nothing can go.
        reason: why nothing can go; "" where something can.
    """

    id: int
    channels: int
    layers: tuple[str, ...]
    patterns: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """A sweep, finished or not.

    Args:
        model: the name or path that was asked for.
        settings: what the points depend on; a sweep goes on only with the same.
        criterion: the score by which channels went.
        inputs: what agreement was measured on, one sentence.
        macs, params, bytes: of the original.
        points: by target, the largest first.
        groups: in the order of the network.
        notes: what a person must know to read the numbers.
    """

    model: str
    settings: Mapping[str, Any]
    criterion: str
    inputs: str
    macs: int
    params: int
    bytes: int
    points: tuple[Point, ...] = ()
    groups: tuple[GroupCost, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json_dict(self) -> dict[str, Any]:
        """Return the report as JSON data, with the headline of each point beside its measures."""
        document = finite(plain(self))
        assert isinstance(document, dict)
        for point, shown in zip(self.points, document["points"], strict=True):
            shown["score"] = None if point.agreement is None else headline(point.agreement)[1]
            shown["score_is"] = None if point.agreement is None else headline(point.agreement)[0]
        return document


def headline(found: Agreement) -> tuple[str, float]:
    """Return the one measure that says most of an agreement, in words, and its value: 1 is all of it.

    With labels the accuracy, else what looks like class scores or masks decides; else one less the largest error.
    """
    if found.accuracy_after is not None:
        return "accuracy", found.accuracy_after
    for words, values in (
        ("equal argmax", [output.argmax for output in found.outputs]),
        ("mask IoU", [output.iou for output in found.outputs]),
    ):
        known = [value for value in values if value is not None]
        if known:
            return words, min(known)
    return "1 - relative error", max(0.0, 1.0 - max((output.error for output in found.outputs), default=0.0))


def point_of(document: Mapping[str, Any]) -> Point:
    """Return a point from its JSON form."""
    values = {key: value for key, value in document.items() if key not in ("score", "score_is")}
    held = values.get("agreement")
    if held is not None:
        outputs = tuple(OutputAgreement(**output) for output in held["outputs"])
        values["agreement"] = Agreement(**{**held, "outputs": outputs})
    return Point(**values)


def group_of(document: Mapping[str, Any]) -> GroupCost:
    """Return a group from its JSON form."""
    lists = {key: tuple(document[key]) for key in ("layers", "patterns")}
    steps = tuple(Step(**{**step, "error": _number(step["error"])}) for step in document["steps"])
    return GroupCost(**{**document, **lists, "steps": steps})


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
