"""Words and numbers for people: names of scores, moments and phases, counts, shares, lists of channels.

Owns the wording that tables and pages share. findings.py has the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from prunec.report.findings import Blocked

SCORE_NAMES = {
    "accuracy": "accuracy",
    "miou": "mIoU",
    "foreground_iou": "foreground IoU",
    "pixel_accuracy": "pixel accuracy",
}
"""The name for people of each score in summary.json and metrics.jsonl."""

MOMENT_NAMES = {"before": "before", "removed": "right after removal", "after": "at the end"}
"""The name for people of each moment of a run at which its network is scored."""

PHASE_NAMES = {"warmup": "warm-up", "ista": "ISTA", "finetune": "fine-tuning"}
"""The name for people of each phase of a run."""


def readable(value: float) -> str:
    """Write a count for people: 1,234 or 41.2 M."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:,.0f}"


def percent(part: float, whole: float) -> str:
    """Write a share for people: 37.2%."""
    return f"{100 * part / whole:.1f}%" if whole else "0%"


def common_folder(names: Iterable[str]) -> str:
    """Return the common beginning of several names, up to a slash ("model/stage1/"); "" if there is none."""
    folders = [name.split("/")[:-1] for name in set(names)]
    if len(folders) < 2:
        return ""
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return "".join(f"{first}/" for first, *_ in shared)


def constant_in(item: Blocked, max_layers: int | None = None, max_channels: int | None = None) -> str:
    """Write the layers in which blocked channels are constant, with the channels' indices."""
    parts = []
    for layer in item.layers[:max_layers]:
        rest = len(layer.channels) - len(layer.channels[:max_channels])
        indices = ", ".join(map(str, layer.channels[:max_channels]))
        parts.append(f"{layer.node}: {indices}" + (f" and {rest} more" if rest else ""))
    layers = len(item.layers) - len(parts)
    return "; ".join(parts) + (f"; {layers} more layers" if layers else "")


def without_branches(sums: Iterable[str]) -> str:
    """Say which branches went as a whole, given the sums that they led to; "" if none did."""
    found = list(sums)
    if not found:
        return ""
    many = f"{len(found)} branches that shortcuts bypass" if len(found) > 1 else "a branch that a shortcut bypasses"
    return f"went as a whole, with a mean added in its place: {many}, at {', '.join(found)}"
