"""What a sweep's folder holds between two calls: what it was asked for, and what has been found.

Owns the question whether a folder's sweep may go on, and the reading of its report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec import __version__
from prunec.data.calibration import Calibration
from prunec.errors import BadInput
from prunec.files import read_json
from prunec.pipeline.options import Options
from prunec.sweep.findings import GroupCost, Point, group_of, point_of


@dataclass(frozen=True, slots=True)
class Known:
    """What an earlier call left.

    Args:
        inputs, notes: see findings.SweepReport; None where there was no earlier call.
    """

    points: tuple[Point, ...] = ()
    groups: tuple[GroupCost, ...] = ()
    inputs: str | None = None
    notes: tuple[str, ...] = ()


def settings_of(
    path: Path, shapes: Mapping[str, Sequence[int]], options: Options, calibration: Calibration | None
) -> dict[str, Any]:
    """Return what the points depend on, as JSON data."""
    data = calibration
    return {
        "prunec": __version__,
        "model": hashlib.sha256(path.read_bytes()).hexdigest(),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "criterion": options.criterion,
        "border": options.border,
        "residual": options.residual,
        "gates": options.gates,
        "keep": list(options.keep),
        "multiple_of": options.multiple_of,
        "seed": options.seed,
        "compensate": options.compensate,
        "data": None if data is None else str(Path(data.data).resolve()),
        "tolerance": None if data is None else data.tolerance,
        "normalise": None if data is None else data.normalise,
        "memory": None if data is None else data.memory,
        "labels": None if data is None or data.labels is None else str(data.labels),
    }


def known_of(folder: Path, settings: Mapping[str, Any], force: bool) -> Known:
    """Return what the folder holds of a sweep with these settings; nothing where it holds none.

    Raises:
        BadInput: it holds another sweep, or a report that cannot be read.
    """
    state = folder / "sweep.json"
    if not state.exists() or force:
        return Known()
    document = read_json(state)
    try:
        held = {key: value for key, value in document["settings"].items() if key != "fractions"}
        if held != settings:
            changed = sorted(key for key in {*held, *settings} if held.get(key) != settings.get(key))
            raise BadInput(
                f"{folder} holds another sweep",
                why=f"other than now: {', '.join(changed)}",
                do="give another folder, or --force to start anew",
            )
        points = tuple(map(point_of, document["points"]))
        groups = tuple(map(group_of, document["groups"]))
        inputs, notes = str(document["inputs"]), tuple(map(str, document["notes"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{state} is no report of a sweep", why=repr(error), do="give another folder") from error
    return Known(tuple(p for p in points if not p.file or (folder / p.file).is_file()), groups, inputs, notes)
