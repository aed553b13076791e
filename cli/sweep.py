"""``prunec sweep``: several sizes of one network, and a page with the curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunec.cli.options import (
    CriterionType,
    MultipleOfType,
    compensate_option,
    debug_option,
    json_option,
    keep_option,
    labels_option,
    memory_option,
    model_argument,
    normalise_option,
    seed_option,
    shape_option,
    weights_option,
)
from prunec.cli.prune import calibration_of

if TYPE_CHECKING:
    from prunec.sweep.findings import SweepReport


@click.command()
@model_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Where files and page go."
)
@shape_option
@weights_option
@click.option(
    "--target-macs",
    "fractions",
    type=click.FloatRange(min=0, max=1, min_open=True),
    multiple=True,
    metavar="F",
    help="Fraction of the MACs that stays; repeatable.  [default: 0.9, 0.8 … 0.3]",
)
@click.option(
    "--calibrate",
    metavar="DATA",
    help="A folder of .npy, .npz or image files: they choose the channels, the rest is fitted, and every fourth "
    "is held out, to measure how good a point is.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1, max_open=True),
    metavar="T",
    help="With --calibrate: how far from constant, as a fraction of the tensor's largest magnitude.  [default: 1e-06]",
)
@normalise_option
@click.option(
    "--criterion",
    type=CriterionType(),
    help="How channels are chosen (taylor, reconstruct: need --calibrate).  [default: reconstruct with --calibrate, "
    "else l1]",
)
@compensate_option
@memory_option
@labels_option
@click.option(
    "--multiple-of",
    type=MultipleOfType(),
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Channels that layers keep come in multiples: a number, or what suits each layer.",
)
@seed_option
@click.option(
    "--sensitivity/--no-sensitivity",
    default=True,
    show_default=True,
    help="Measure what each coupled group costs by itself.",
)
@click.option("--force", is_flag=True, help="Start anew if the folder holds another sweep.")
@keep_option
@json_option
@debug_option
def sweep(
    model: str,
    output: Path,
    input_shapes: dict[str, tuple[int, ...]],
    weights: Path | None,
    fractions: tuple[float, ...],
    calibrate: str | None,
    tolerance: float | None,
    normalise: str | None,
    memory: str | None,
    labels: str | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Prune to several sizes, and show how far it can go.

    FOLDER gets an ONNX file per point, sweep.json, and index.html with the curve of agreement (with --labels: of
    accuracy) against MACs, size and latency, and what removing parts of each coupled group costs. With --calibrate the
    data choose the channels, and the rest is fitted to make up for them; the data are read once for all points.
    Call the command again to continue a sweep that was stopped.

    MODEL is an .onnx file, a built-in architecture, torchvision:NAME, timm:NAME, or package.module:factory.
    """
    from prunec.cli.render import show_json, ticker
    from prunec.lookup.resolve import resolve
    from prunec.sweep.sweep import FRACTIONS
    from prunec.sweep.sweep import sweep as run

    calibration = calibration_of(calibrate, tolerance, normalise, memory, labels)
    found, progress = resolve(model, input_shapes, weights=weights), ticker()
    report = run(found, output, fractions=fractions or FRACTIONS, calibration=calibration, progress=progress, **choices)
    progress("")
    if as_json:
        show_json({**report.to_json_dict(), "output": str(output)})
    else:
        _show(report, output)


def _show(report: SweepReport, output: Path) -> None:
    from prunec.cli.render import console, row, table, tell
    from prunec.report.wording import percent, readable
    from prunec.sweep.findings import headline

    out = console()
    out.print(f"{report.model}: {readable(report.params)} parameters, {readable(report.macs)} MACs")
    out.print(f"agreement with the original on {report.inputs}")
    known = [point.agreement.accuracy_before for point in report.points if point.agreement is not None]
    if known and known[0] is not None:
        out.print(f"accuracy of the original: {known[0]:.1%}")
    shown = table("asked>", "MACs>", "params>", "file>", "latency>", "speed-up>", "agreement>", "file", "note")
    for point in report.points:
        cells = [""] * 7
        if point.file and point.agreement is not None:
            words, score = headline(point.agreement)
            cells = [
                f"{readable(point.macs)} {percent(point.macs, report.macs)}",
                f"{readable(point.params)} {percent(point.params, report.params)}",
                f"{point.bytes / 1e6:.3g} MB",
                f"{point.original_ms:.3g} -> {point.pruned_ms:.3g} ms",
                f"{point.original_ms / point.pruned_ms:.2f} x",
                f"{score:.1%} {words}",
                point.file,
            ]
        row(shown, f"{point.target:.0%}", *cells, point.note)
    out.print(shown)
    for note in report.notes:
        tell(f"note: {note}")
    out.print(f"wrote {output / 'index.html'}")
