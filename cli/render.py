"""Results as tables on stdout, remarks on stderr, JSON alone on stdout.

Owns how things look in a terminal; the numbers come from prunec/report/findings.py's types. NO_COLOR and pipes
are respected by rich.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunec.report.findings import Cost
from prunec.report.wording import (
    MOMENT_NAMES,
    SCORE_NAMES,
    common_folder,
    constant_in,
    percent,
    readable,
    without_branches,
)

if TYPE_CHECKING:
    from prunec.check.health import Findings
    from prunec.report.findings import (
        Agreement,
        Analysis,
        Blocked,
        CalibrationReport,
        Group,
        LayerSummary,
        PinReport,
        PruneReport,
        Validation,
    )
    from prunec.training.run.results import RunResult

_ROWS = 20
_PIPE_WIDTH = 120
_BETWEEN_LINES = 10.0
"""Seconds."""


def console(stderr: bool = False) -> Console:
    """Return a console; a pipe gets a fixed width, so that tables do not depend on where they are read."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False)


def show_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(document, allow_nan=False))


def tell(message: str) -> None:
    """Print a remark on stderr: stdout holds the result only."""
    click.echo(message, err=True)


def ticker() -> Callable[[str], None]:
    """Return a function that shows progress on stderr: one changing line in a terminal, else a line now and then.

    Messages that differ in numbers only ("layer 3 of 50") are of one kind; one in ten seconds of these is enough.
    """
    last: list[Any] = ["", 0.0]

    def told(message: str) -> None:
        if sys.stderr.isatty():
            progress_line(message)
            return
        kind, now = re.sub(r"[\d.]+", "#", message), time.monotonic()
        counts = "# of #" in kind
        if message and (not counts or kind != last[0] or now - last[1] >= _BETWEEN_LINES):
            last[:] = [kind, now]
            tell(message)

    return told


def change(before: float, after: float) -> str:
    """Write a relative change: −37.2%."""
    if before == 0:
        return ""
    return f"{100 * (after - before) / before:+.1f}%".replace("-", "−")


def heading(out: Console, title: str) -> None:
    """Print a table's title; rich would wrap its own to the table's width."""
    out.print()
    out.print(Text(title, style="bold"))


def table(*columns: str) -> Table:
    """Return a plain table; a column whose name ends in ">" is right-aligned."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.endswith(">")
        made.add_column(
            column.removesuffix(">"),
            justify="right" if right else "left",
            header_style="dim",
            overflow="fold",
            no_wrap=right,
        )
    return made


def row(into: Table, *cells: object) -> None:
    """Add a row of plain text: names of the user's model may hold what rich takes for markup."""
    into.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))


def show_analysis(analysis: Analysis, *, full: bool = False) -> None:
    """Print an analysis: totals, layers, groups, pins and what is blocked."""
    out = console()
    out.print(
        Text(f"{analysis.model}", style="bold"), Text(f"({analysis.frontend}, {analysis.nodes} nodes)", style="dim")
    )
    out.print(
        f"{readable(analysis.params)} parameters, {readable(analysis.macs)} MACs, "
        f"{readable(analysis.activations)} activation elements (batch 1)"
    )
    counts, gone = analysis.channels, analysis.removable
    out.print(
        f"{counts.total:,} channels: {counts.prunable:,} prunable, {counts.pinned:,} pinned; "
        f"{counts.constant:,} constant, {counts.dead:,} dead"
    )
    out.print(
        f"removable without changing the function: {gone.channels:,} channels, {readable(gone.params)} parameters "
        f"({percent(gone.params, analysis.params)}), {readable(gone.macs)} MACs ({percent(gone.macs, analysis.macs)})"
    )
    if gone.multiples:
        out.print(f"{gone.multiples:,} of these channels are multiples of others: one of each kind is enough")
    _show_layers(out, analysis.layers, full)
    _show_groups(out, analysis.groups, full)
    _show_blocked(out, analysis.blocked, full)
    _tell_rewrites(out, analysis.blocked, ("residual", "gates"))
    _show_pins(out, analysis.pins, full)
    for note in analysis.notes:
        tell(f"note: {note}")


def _folder_note(folder: str) -> str:
    return f" (names behind {folder})" if folder else ""


def _show_layers(out: Console, layers: Sequence[LayerSummary], full: bool) -> None:
    if not layers:
        return
    folder = common_folder(layer.node for layer in layers)
    heading(out, f"Layers{_folder_note(folder)}")
    shown = table("layer", "op", "channels>", "prunable>", "constant>", "dead>", "params>", "MACs>", "note")
    picked = layers if full else sorted(layers, key=lambda layer: -layer.params)[:_ROWS]
    wanted = {layer.node for layer in picked}
    for layer in layers:
        if layer.node in wanted:
            row(
                shown, layer.node.removeprefix(folder), layer.op, f"{layer.channels:,}", f"{layer.prunable:,}",
                layer.constant or "", layer.dead or "", readable(layer.params), readable(layer.macs), layer.note,
            )  # fmt: skip
    out.print(shown)
    _tell_rest(out, len(layers) - len(wanted), "smaller layers")


def _show_groups(out: Console, groups: Sequence[Group], full: bool) -> None:
    if not groups:
        return
    folder = common_folder(member.node for group in groups for member in group.members)
    heading(out, f"Coupled groups{_folder_note(folder)}")
    shown = table("group", "channels>", "prunable", "params each>", "MACs each>", "members")
    picked = groups if full else sorted(groups, key=lambda group: -group.channels * group.params_per_channel)[:_ROWS]
    for group in picked:
        names = list(dict.fromkeys(member.node.removeprefix(folder) for member in group.members))
        members = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        row(
            shown, group.id, f"{group.channels:,}", "yes" if group.prunable else "pinned",
            readable(group.params_per_channel), readable(group.macs_per_channel), members,
        )  # fmt: skip
    out.print(shown)
    _tell_rest(out, len(groups) - len(picked), "smaller groups")


def _show_pins(out: Console, pins: Sequence[PinReport], full: bool) -> None:
    if not pins:
        return
    heading(out, "Pinned: cannot be removed")
    shown = table("node", "op", "channels>", "reason")
    picked = pins if full else sorted(pins, key=lambda item: -item.channels)[:_ROWS]
    for item in picked:
        row(shown, item.node, item.op, f"{item.channels:,}", item.reason)
    out.print(shown)
    _tell_rest(out, len(pins) - len(picked), "more")


def _show_blocked(out: Console, held: Sequence[Blocked], full: bool) -> None:
    """Print which constant channels stay: the node that holds them, why, and in which layers they are constant."""
    if not held:
        return
    heading(out, "Blocked: constant or dead, but they have to stay")
    shown = table("held by", "op", "channels>", "reason", "constant in")
    picked = held if full else sorted(held, key=lambda item: -item.channels)[:_ROWS]
    for item in picked:
        row(shown, item.node, item.op, f"{item.channels:,}", item.reason, constant_in(item, *(() if full else (2, 6))))
    out.print(shown)
    _tell_rest(out, len(held) - len(picked), "more")


def _tell_rewrites(out: Console, held: Sequence[Blocked], options: Sequence[str]) -> None:
    """Name the options that could free channels held by another branch of a sum, or by a gate.

    Args:
        options: "residual" and "gates", as far as they were not asked for.
    """
    from prunec.report.survivors import GATED, RESIDUAL

    told = {
        "residual": (RESIDUAL, "a sum", "--residual expand takes them out of the branch where they are constant"),
        "gates": (GATED, "a gate", "--gates fold takes them past the product"),
    }
    for reason, holder, remedy in (told[option] for option in options):
        count = sum(item.channels for item in held if item.reason == reason)
        if count:
            sentence = f"{count:,} of them are held by {holder}: prunec prune {remedy}"
            out.print(Text(f"{sentence}, if that saves more than it costs", style="dim"))


def _tell_rest(out: Console, count: int, what: str) -> None:
    if count > 0:
        out.print(Text(f"… {count} {what}; --full shows all", style="dim"))


def show_prune(report: PruneReport, output: str, *, untried: Sequence[str] = ()) -> None:
    """Print what a pruning did and where the result is.

    Args:
        untried: "residual", "gates": options that might have removed more.
    """
    out = console()
    out.print(Text(f"{report.model}:", style="bold"), Text(report.reason, style="dim"))
    out.print(cost_table(report.before, report.after))
    kind = "an approximation: the function has changed"
    if report.exact or report.exact_on_data:
        kind = "computes the same function" + ("" if report.exact else " on the data, elsewhere it may differ")
    out.print(f"removed {report.removed_channels:,} channels; {kind}")
    if report.latency is not None:
        found = report.latency
        out.print(
            f"takes {found.share:.1%} of the original's time ({found.asked:.0%} were asked for): "
            f"{found.original_ms:.3g} -> {found.pruned_ms:.3g} ms in ONNX Runtime ({found.provider}, one thread)"
        )
    if report.calibration is not None:
        _print_calibration(out, report.calibration, judged=bool(report.agreement and report.agreement.samples))
    if report.multiples:
        out.print(f"{report.multiples:,} channels are multiples of others, which take them over")
    if report.branches:
        out.print(without_branches(report.branches))
    if report.carriers:
        out.print(f"constant channels that stay as carriers, so that padded borders remain exact: {report.carriers:,}")
    if report.expanded:
        count = sum(item.channels for item in report.expanded)
        nodes = len({item.node for item in report.expanded})
        out.print(f"constant channels taken out of one branch, and put back where it is added up: {count:,} at {nodes}")
    if report.gates:
        count = sum(item.channels for item in report.gates)
        out.print(f"constants times a gate that go past the product: {count:,} channels at {len(report.gates)}")
    changed = [layer for layer in report.layers if layer.before != layer.after]
    if changed:
        heading(out, "Output channels that changed")
        layers = table("layer", "op", "before>", "after>")
        for layer in changed:
            row(layers, layer.node, layer.op, f"{layer.before:,}", f"{layer.after:,}" if layer.after else "gone")
        out.print(layers)
    _show_blocked(out, report.blocked, full=False)
    _tell_rewrites(out, report.blocked, untried)
    if report.message:
        out.print()
        out.print(Text(report.message, style="yellow"))
    if report.agreement is not None and report.agreement.samples:
        _print_agreement(out, report.agreement)
    if report.validation is not None:
        out.print()
        _print_check(out, report)
    for note in report.notes:
        tell(f"note: {note}")
    out.print(Text(f"wrote {output}"))


def _print_calibration(out: Console, found: CalibrationReport, *, judged: bool) -> None:
    """Print what was constant on the data.

    Args:
        judged: the result is measured on held-out samples below.
    """
    out.print(
        f"{found.samples:,} samples from {found.data}: {found.constant_channels:,} channels stay within "
        f"{found.tolerance:g} of a constant; {found.removed_channels:,} output channels went for that reason alone"
    )
    if found.held_out:
        out.print(
            f"{found.contradicted_channels:,} more looked constant until the {found.held_out:,} held-out samples"
            + (": more data may well contradict others" if found.contradicted_channels else "")
        )
    elif not judged:
        tell("note: too few samples to hold some out, so nobody knows whether other data would agree")


def _print_agreement(out: Console, found: Agreement) -> None:
    """Print how the result does on samples that were held out from the fit."""
    heading(out, f"Against the original on {found.samples:,} held-out samples")
    shown = table("output", "relative error>", "same class>", "mask IoU>")
    for item in found.outputs:
        shares = ["" if share is None else f"{share:.1%}" for share in (item.argmax, item.iou)]
        row(shown, item.name, f"{item.error:.3g}", *shares)
    out.print(shown)
    if found.accuracy_before is not None and found.accuracy_after is not None:
        out.print(f"accuracy {found.accuracy_before:.2%} before, {found.accuracy_after:.2%} after")


def progress_line(what: str) -> None:
    """Overwrite the last line of stderr with what is being done, if stderr is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{what} …" if what else "\r\x1b[2K")
        sys.stderr.flush()


def _print_check(out: Console, report: PruneReport) -> None:
    """Print how the result compares; a result that is meant to differ from the original is not shown as a failure."""
    assert report.validation is not None
    if report.border_error is not None:
        out.print(f"differs from the original: relative error {report.border_error:.2g}, measured")
    on_data = "data" in report.validation.families
    where = " on the data" if on_data else ""
    if report.validation.passed or report.exact or report.exact_on_data:
        _print_errors(
            out, report.validation, f"the original{where}" if report.exact or on_data else "the pruned module"
        )
    elif on_data:
        out.print(f"differs from the original{where}: relative error {report.validation.max_rel_error:.2g}")
    _print_latency(out, report.validation)


def _print_latency(out: Console, check: Validation) -> None:
    if check.latency_ratio is not None:
        out.print(
            f"latency in ONNX Runtime ({check.provider_ran}): {check.latency_a_ms:.3g} ms before, "
            f"{check.latency_b_ms:.3g} ms after: {check.latency_ratio:.2f} times as fast"
        )


def show_run(result: RunResult) -> None:
    """Print the outcome of a training run: size, accuracy, check, speed and files."""
    out = console()
    out.print(Text(result.model, style="bold"))
    out.print(cost_table(Cost(**result.before), Cost(**result.after)))
    changed = [layer for layer in result.layers if layer["before"] != layer["after"]]
    if changed:
        heading(out, "Output channels that changed")
        layers = table("layer", "op", "before>", "after>")
        for layer in changed:
            row(layers, layer["node"], layer["op"], f"{layer['before']:,}", f"{layer['after']:,}")
        out.print(layers)
    out.print()
    for score, moments in result.scores.items():
        values = [f"{MOMENT_NAMES[key]} {100 * value:.2f}%" for key, value in moments.items() if key in MOMENT_NAMES]
        out.print(f"test {SCORE_NAMES.get(score, score)}: {', '.join(values)}")
    _print_errors(out, result.validation, "the trained network")
    _print_latency(out, result.validation)
    _show_milestones(out, result)
    for sentence in (*result.reasons, *result.advice):
        out.print(Text(sentence, style="dim"))
    out.print(Text(f"in {result.output}: {', '.join(result.files)}"))


def _show_milestones(out: Console, result: RunResult) -> None:
    if not result.milestones:
        return
    heading(out, "Milestones")
    name = SCORE_NAMES.get(result.metric, result.metric)
    shown = table("folder", "parameters>", "MACs>", "of all>", f"{name}>", "speed>")
    before = result.score.get("before")
    score = "" if before is None else f"{100 * before:.2f}%"
    row(shown, "unpruned", readable(result.before["params"]), readable(result.before["macs"]), "100.0%", score, "")
    for item in result.milestones:
        share, speed = percent(item["macs"], result.before["macs"]), item["latency_ratio"]
        row(
            shown, os.path.basename(item["folder"]), readable(item["params"]), readable(item["macs"]), share,
            f"{100 * item['score']['after']:.2f}%", "" if speed is None else f"{speed:.2f}×",
        )  # fmt: skip
    out.print(shown)


def cost_table(before: Cost, after: Cost) -> Table:
    """Return a table of a network's size before and after."""
    shown = table("", "before>", "after>", "change>")
    for name, a, b in (
        ("parameters", before.params, after.params),
        ("MACs", before.macs, after.macs),
        ("activations", before.activations, after.activations),
        ("channels", before.channels, after.channels),
    ):
        row(shown, name, readable(a), readable(b), change(a, b))
    return shown


def show_validation(result: Validation, a: str, b: str) -> None:
    """Print a comparison of two models."""
    out = console()
    out.print(Text(f"A {a}\nB {b}"))
    _print_errors(out, result, "A")
    families = table("inputs", "relative error>")
    for family, error in result.families.items():
        row(families, family, f"{error:.2e}")
    out.print(families)
    if result.latency_ratio is not None:
        out.print(
            f"latency on {result.provider_ran}: A {result.latency_a_ms:.3g} ms, B {result.latency_b_ms:.3g} ms, "
            f"B is {result.latency_ratio:.2f} times as fast (the faster of interleaved runs)"
        )


def _print_errors(out: Console, result: Validation, reference: str) -> None:
    verdict = Text(f"agrees with {reference}:", style="green")
    if not result.passed:
        verdict = Text(f"DIFFERS from {reference}:", style="bold red")
    out.print(
        verdict,
        f"max error {result.max_abs_error:.2e}, relative {result.max_rel_error:.2e} "
        f"(tolerance {result.tolerance:g}, on {result.provider_ran})",
    )
    for note in result.notes:
        tell(f"note: {note}")


def show_doctor(findings: Findings) -> None:
    """Print what ``prunec doctor`` found."""
    out = console()
    out.print(f"Python {findings.python} on {findings.platform}, {findings.cpus} cores")
    packages = table("package", "version")
    for name, version in findings.packages.items():
        row(packages, name, version or Text("not installed", style="dim"))
    out.print(packages)
    out.print()
    out.print(f"PyTorch devices: {', '.join(findings.torch_devices) or 'none'}")
    providers = table("ONNX Runtime provider", "works", "")
    for provider in findings.providers:
        row(providers, provider.name, "yes" if provider.works else "no", provider.note)
    out.print(providers)
    for note in findings.notes:
        out.print(Text(f"note: {note}", style="yellow"))


def show_rows(rows: Iterable[Sequence[object]], *columns: str) -> None:
    """Print a plain table."""
    shown = table(*columns)
    for cells in rows:
        row(shown, *cells)
    console().print(shown)
