"""The page of a sweep: the curve, the points, and what each coupled group costs.

Owns that page only; the frame and style are prunec/report/run_page.py's, charts prunec/report/charts.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from prunec.report.charts import pareto_chart, stacked_bar, text
from prunec.report.run_page import html_table, name_cell, page, section, tiles
from prunec.report.wording import common_folder, percent, readable
from prunec.sweep.findings import GroupCost, Point, Step, SweepReport, headline


def sweep_page(report: SweepReport) -> str:
    """Return the page, one self-contained HTML document."""
    made = [point for point in report.points if point.file]
    head = [
        (readable(report.params), "parameters", ""),
        (readable(report.macs), "MACs, batch 1", ""),
        (f"{report.bytes / 1e6:.3g} MB", "file", ""),
        (f"{made[0].original_ms:.3g} ms" if made else "", "latency, one thread of this CPU", ""),
        *_accuracy(made),
        (str(len(made)), "points", ""),
    ]
    notes = [
        f"{_HOW.get(report.criterion, f'Channels go by {report.criterion}')}.",
        f"Agreement with the original is measured on {report.inputs}.",
        "Points on the line are those that no other beats in both.",
        *report.notes,
    ]
    body = [
        f"<h1>{text(report.model)}</h1>",
        '<p class="soft">prunec sweep: how far can it go?</p>',
        tiles(head),
        section("How to read it", *(f'<p class="soft">{text(note)}</p>' for note in notes)),
        section("The curve", _curves(report, made)),
        section("Points", _points(report)),
        section("What each coupled group costs", _GROUPS_SAY, _groups(report)),
        section("Groups of which nothing can go", _stay(report.groups)),
    ]
    return page(f"{report.model} swept", "".join(body))


_HOW = {
    "reconstruct": "The data choose the channels that go: those that the others make up for at the least error; what "
    "stays is fitted to do so",
    "l1": "Channels go by the magnitude of their filters (l1)",
}


def _accuracy(made: Sequence[Point]) -> Iterator[tuple[str, str, str]]:
    """Yield a tile with the accuracy of the original, where there are labels."""
    for point in made[:1]:
        if point.agreement is not None and point.agreement.accuracy_before is not None:
            yield f"{point.agreement.accuracy_before:.1%}", "accuracy of the original", ""


_GROUPS_SAY = (
    '<p class="soft">Channels of a group live or die together, in all layers that it runs through. For each: the '
    "error of the outputs (root mean square, relative) when a quarter, a half, three quarters of it go and nothing "
    "else does, and the share of the network's MACs and the microseconds that this saves. The groups that cost most "
    "come first: <code>--keep</code> leaves them alone.</p>"
)


def _curves(report: SweepReport, points: Sequence[Point]) -> str:
    """Draw the agreement against what a point costs, three times."""
    known = [(point, *headline(point.agreement)) for point in points if point.agreement is not None]
    if not known or known[0][0].agreement is None:
        return ""
    name, whole = known[0][1], known[0][0].agreement.accuracy_before

    def chart(title: str, cost: Sequence[float], original: float) -> str:
        shown = [(f"{p.target:.0%}", x, score) for (p, _, score), x in zip(known, cost, strict=True)]
        return pareto_chart(title, [("original", original, 1.0 if whole is None else whole), *shown])

    charts = (
        chart(f"{name} against MACs", [float(p.macs) for p, _, _ in known], float(report.macs)),
        chart(f"{name} against measured latency, % of the original's", [_share(p) for p, _, _ in known], 100.0),
        chart(f"{name} against file size, kB", [p.bytes / 1e3 for p, _, _ in known], report.bytes / 1e3),
    )
    return f'<div class="pair">{"".join(charts)}</div>'


def _share(point: Point) -> float:
    return 100 * point.pruned_ms / point.original_ms if point.original_ms else 100.0


def _points(report: SweepReport) -> str:
    rows = []
    for point in report.points:
        if not point.file or point.agreement is None:
            rows.append((f"{point.target:.0%}", *[""] * 7, text(point.note)))
            continue
        name, score = headline(point.agreement)
        error = max((output.error for output in point.agreement.outputs), default=0.0)
        rows.append(
            (
                f"{point.target:.0%}",
                f"{readable(point.macs)} ({percent(point.macs, report.macs)})",
                f"{readable(point.params)} ({percent(point.params, report.params)})",
                f"{point.bytes / 1e6:.3g} MB",
                f"{point.original_ms:.3g} → {point.pruned_ms:.3g} ms",
                f"{point.original_ms / point.pruned_ms:.2f} ×" if point.pruned_ms else "",
                f"{score:.1%} {text(name)}",
                f"{error:.2g}",
                f'<a href="{text(point.file)}">{text(point.file)}</a>',
            )
        )
    columns = ("asked>", "MACs>", "parameters>", "file>", "latency>", "speed-up>", "agreement>", "largest error>", "")
    return html_table(columns, rows)


def _groups(report: SweepReport) -> str:
    """Return a row per group of which something can go: the most costly first."""
    groups = sorted((group for group in report.groups if group.steps), key=lambda group: -_worst(group))
    top = max((_worst(group) for group in groups), default=0.0)
    rows = []
    folder = common_folder(layer for group in report.groups for layer in group.layers)
    for group in groups:
        cells: list[str] = []
        for share in (0.25, 0.5, 0.75):
            step = next((step for step in group.steps if step.share == share), None)
            cells += ["", ""] if step is None else [_error(step, top), _saved(step, report.macs)]
        name = name_cell(_named(group, folder))
        rows.append((str(group.id), name, f"{group.channels:,}", *cells))
    columns = ["group>", "layers", "channels>"]
    for part in ("25%", "50%", "75%"):
        columns += [f"error at {part}", "saves MACs, µs"]
    return (f'<p class="soft">Names behind <code>{text(folder)}</code></p>' if folder else "") + html_table(
        columns, rows
    )


def _named(group: GroupCost, folder: str) -> str:
    names = [layer.removeprefix(folder) for layer in group.layers]
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")


def _worst(group: GroupCost) -> float:
    errors = [step.error for step in group.steps if math.isfinite(step.error)]
    return max(errors, default=0.0)


def _error(step: Step, top: float) -> str:
    if not math.isfinite(step.error):
        return "not a number"
    bar = stacked_bar([("error", "c8", step.error), ("", "c0", max(0.0, top - step.error))], width=44) if top else ""
    return f'<span style="white-space:nowrap">{step.error:.2g} {bar}</span>'


def _saved(step: Step, macs: int) -> str:
    return f"{percent(step.macs, macs)}, {step.microseconds:.3g}"


def _stay(groups: Sequence[GroupCost]) -> str:
    rows = [
        (str(group.id), f"{group.channels:,}", text(group.reason), name_cell(", ".join(group.layers[:4])))
        for group in groups
        if not group.steps
    ]
    return html_table(("group>", "channels>", "reason", "layers"), rows)
