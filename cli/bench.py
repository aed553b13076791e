"""``prunec bench``: how much of the speed-up that fewer MACs promise ONNX Runtime delivers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunec.cli.options import (
    MultipleOfType,
    debug_option,
    json_option,
    keep_option,
    model_argument,
    provider_option,
    seed_option,
    shape_option,
    weights_option,
)

if TYPE_CHECKING:
    from prunec.bench import BenchReport


@click.command()
@model_argument
@shape_option
@weights_option
@click.option(
    "--target-macs",
    "fractions",
    type=click.FloatRange(min=0, max=1, min_open=True),
    multiple=True,
    default=(0.75, 0.5, 0.25),
    show_default=True,
    metavar="F",
    help="Fraction of the MACs that stays; repeatable.",
)
@click.option(
    "--multiple-of",
    type=MultipleOfType(),
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Multiple to round channels to, besides no rounding: a number, or what suits each layer.",
)
@click.option(
    "--criterion",
    type=click.Choice(["l1", "random"]),
    default="l1",
    show_default=True,
    help="The score by which channels go.",
)
@provider_option
@click.option("--runs", type=click.IntRange(min=3), default=30, show_default=True, help="Timed runs of each file.")
@seed_option
@keep_option
@json_option
@debug_option
def bench(model: str, input_shapes: dict[str, tuple[int, ...]], weights: Path | None, as_json: bool, **c: Any) -> None:
    """Compare promised with measured speed-up.

    MODEL is pruned by score to several fractions of its MACs, with and without rounding channels to a
    multiple, and each file is timed in ONNX Runtime against the original, in turns. The files are not kept.

    MODEL is an .onnx file, a built-in architecture, torchvision:NAME, timm:NAME, or package.module:factory.
    """
    from prunec.bench import bench as measure
    from prunec.cli.render import show_json, tell
    from prunec.lookup.resolve import resolve

    found = resolve(model, input_shapes, weights=weights)
    report = measure(found, progress=tell, **c)
    if as_json:
        show_json(report.to_json_dict())
    else:
        _show(report)


def _show(report: BenchReport) -> None:
    from prunec.cli.render import console, row, table, tell
    from prunec.report.wording import readable

    out = console()
    shapes = ", ".join("x".join(map(str, shape)) for shape in report.inputs.values())
    out.print(f"{report.model}: {readable(report.params)} parameters, {readable(report.macs)} MACs, input {shapes}")
    out.print(f"ONNX Runtime on {report.provider}, channels removed by {report.criterion}, medians of interleaved runs")
    shown = table("asked>", "multiple of>", "MACs>", "params>", "promised>", "measured>", "ratio>", "latency", "note")
    for item in report.rows:
        promised, measured, ratio = report.promised(item), report.measured(item), report.ratio(item)
        cells = ["", "", "", "", "", ""]
        if item.macs is not None and item.params is not None and promised and measured and ratio:
            times = f"{item.original_ms:.3g} -> {item.pruned_ms:.3g} ms"
            ratios = (f"{promised:.2f} x", f"{measured:.2f} x", f"{ratio:.2f}")
            cells = [readable(item.macs), readable(item.params), *ratios, times]
        row(shown, f"{item.target_macs:.0%}", item.multiple_of, *cells, item.note)
    out.print(shown)
    for note in report.notes:
        tell(f"note: {note}")
