"""The page of one pruning: what was removed, sizes, agreement on held-out inputs, what stayed and why.

Owns that page only; the frame, the style and the tables of sizes and layers are prunec/report/run_page.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prunec.report.analysis_page import blocked_table, pins_table
from prunec.report.charts import text
from prunec.report.findings import Agreement, PruneReport, Validation
from prunec.report.run_page import (
    details,
    html_table,
    kept,
    layer_table,
    name_cell,
    page,
    section,
    size_tiles,
    sizes,
    tiles,
)
from prunec.report.wording import without_branches


def prune_page(report: PruneReport, output: str) -> str:
    """Return the page, one self-contained HTML document.

    Args:
        output: where the pruned network is.
    """
    document = report.to_json_dict()
    said = [*filter(None, [report.message, without_branches(report.branches)]), *report.notes]
    body = [
        f"<h1>{text(report.model)}</h1>",
        f'<p class="soft">prunec prune, written to {text(output)}: {text(report.reason)}; {_kind(report)}</p>',
        tiles([*size_tiles(document), *_measured(report)]),
        section("Notes", *(f"<p>{text(sentence)}</p>" for sentence in said)),
        section("Agreement with the original on held-out inputs", _agreement(report.agreement)),
        section("Time", _time(report)),
        section("Check", _check(report)),
        section("Channels kept per layer", kept(document)),
        section("Size", sizes(document)),
        section("Blocked: constant or dead, but they have to stay", blocked_table(report.blocked)),
        details("Pinned: could not be removed", pins_table(report.pins)),
        details("Layers", layer_table(document)),
    ]
    return page(f"{report.model} pruned", "".join(body))


def _kind(report: PruneReport) -> str:
    if report.exact:
        return "it computes the same function"
    if report.exact_on_data:
        return "it computes the same function on the data, elsewhere it may differ"
    return "an approximation: the function has changed"


def _measured(report: PruneReport) -> Iterator[tuple[str, str, str]]:
    """Yield tiles of the measurements: accuracy, or the measure that suits the outputs; time."""
    found = report.agreement
    if found is not None and found.accuracy_before is not None and found.accuracy_after is not None:
        yield f"{found.accuracy_after:.2%}", f"accuracy, from {found.accuracy_before:.2%}", ""
    elif found is not None and found.outputs:
        for output in found.outputs[:1]:
            if output.argmax is not None:
                yield f"{output.argmax:.1%}", "of held-out samples get the same class", ""
            elif output.iou is not None:
                yield f"{output.iou:.1%}", "overlap of masks (IoU)", ""
            else:
                yield f"{output.error:.2g}", "relative error on held-out samples", ""
    if report.latency is not None:
        yield f"{report.latency.share:.1%}", f"of the time; {report.latency.asked:.0%} were asked for", ""
    elif report.validation is not None and report.validation.latency_ratio is not None:
        yield f"{report.validation.latency_ratio:.2f}×", "speed in ONNX Runtime", ""


def _agreement(found: Agreement | None) -> str:
    if found is None or not found.samples:
        return ""
    rows = [
        (
            name_cell(item.name),
            f"{item.error:.3g}",
            *("" if share is None else f"{share:.1%}" for share in _shares(item)),
        )
        for item in found.outputs
    ]
    table = html_table(("output", "relative error>", "same class>", "mask IoU>"), rows)
    accuracy = ""
    if found.accuracy_before is not None and found.accuracy_after is not None:
        accuracy = f"<p>Accuracy: {found.accuracy_before:.2%} before, {found.accuracy_after:.2%} after.</p>"
    said = (
        f"{found.samples:,} held-out samples. Errors are root mean squares of the difference, over that of the "
        "original's output."
    )
    return f'<p class="soft">{said}</p>{accuracy}{table}'


def _shares(item: Any) -> tuple[float | None, float | None]:
    return item.argmax, item.iou


def _time(report: PruneReport) -> str:
    found = report.latency
    if found is not None:
        return (
            f"<p>{found.original_ms:.3g} → {found.pruned_ms:.3g} ms in ONNX Runtime ({text(found.provider)}, one "
            f"thread, in turns): {found.share:.1%}, after {found.tries} tries.</p>"
        )
    check = report.validation
    if check is None or check.latency_ratio is None:
        return ""
    return (
        f"<p>{check.latency_a_ms:.3g} → {check.latency_b_ms:.3g} ms in ONNX Runtime ({text(check.provider_ran)}), "
        "medians of runs in turns.</p>"
    )


def _check(report: PruneReport) -> str:
    check = report.validation
    if check is None:
        return "<p>The result was not compared with the original.</p>"
    if report.border_error is not None:
        return f"<p>It differs from the original by {report.border_error:.2g} (relative), at borders.</p>"
    on_data = "data" in check.families
    against = "the original" if report.exact or on_data else "the pruned module"
    if not (check.passed or report.exact or report.exact_on_data):
        return _difference(check) if on_data else ""
    css, word = ("good", "agrees") if check.passed else ("bad", "differs")
    return (
        f'<p>The file <b class="{css}">{word}</b> with {against}{" on the data" if on_data else ""}: relative error '
        f"{check.max_rel_error:.2e}, tolerance {check.tolerance:g}.</p>"
    )


def _difference(check: Validation) -> str:
    return f"<p>On the data it differs from the original by {check.max_rel_error:.2g} (relative).</p>"
