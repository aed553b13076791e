"""Results as tables on stdout, remarks on stderr, JSON alone on stdout.

Owns what is shown of results; the numbers come from prunec/report/findings.py's types, terminal.py wraps and aligns.
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

from prunec.cli.terminal import Screen, Table, styled
from prunec.report.wording import MOMENT_NAMES, SCORE_NAMES, common_folder, constant_in, percent, readable

if TYPE_CHECKING:
    from prunec.check.health import Findings
    from prunec.report.findings import (
        Agreement,
        Analysis,
        Blocked,
        CalibrationReport,
        Cost,
        Group,
        LayerSummary,
        PinReport,
        PruneReport,
        Validation,
    )
    from prunec.training.run.results import RunResult

_ROWS = 20
_BETWEEN_LINES = 10.0
"""Seconds."""


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


def show_analysis(analysis: Analysis, *, full: bool = False) -> None:
    """Print an analysis: totals, layers, groups, pins and what is blocked."""
    out = Screen()
    out.print(
        styled(f"{analysis.model}", bold=True), styled(f"({analysis.frontend}, {analysis.nodes} nodes)", dim=True)
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


def _show_layers(out: Screen, layers: Sequence[LayerSummary], full: bool) -> None:
    if not layers:
        return
    folder = common_folder(layer.node for layer in layers)
    out.heading(f"Layers{_folder_note(folder)}")
    shown = Table("layer", "op", "channels>", "prunable>", "constant>", "dead>", "params>", "MACs>", "note")
    picked = layers if full else sorted(layers, key=lambda layer: -layer.params)[:_ROWS]
    wanted = {layer.node for layer in picked}
    for layer in layers:
        if layer.node in wanted:
            shown.row(
                layer.node.removeprefix(folder), layer.op, f"{layer.channels:,}", f"{layer.prunable:,}",
                layer.constant or "", layer.dead or "", readable(layer.params), readable(layer.macs), layer.note,
            )  # fmt: skip
    out.show(shown)
    _tell_rest(out, len(layers) - len(wanted), "smaller layers")


def _show_groups(out: Screen, groups: Sequence[Group], full: bool) -> None:
    if not groups:
        return
    folder = common_folder(member.node for group in groups for member in group.members)
    out.heading(f"Coupled groups{_folder_note(folder)}")
    shown = Table("group", "channels>", "prunable", "params each>", "MACs each>", "members")
    picked = groups if full else sorted(groups, key=lambda group: -group.channels * group.params_per_channel)[:_ROWS]
    for group in picked:
        names = list(dict.fromkeys(member.node.removeprefix(folder) for member in group.members))
        members = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        shown.row(
            group.id, f"{group.channels:,}", "yes" if group.prunable else "pinned",
            readable(group.params_per_channel), readable(group.macs_per_channel), members,
        )  # fmt: skip
    out.show(shown)
    _tell_rest(out, len(groups) - len(picked), "smaller groups")


def _show_pins(out: Screen, pins: Sequence[PinReport], full: bool) -> None:
    if not pins:
        return
    out.heading("Pinned: cannot be removed")
    shown = Table("node", "op", "channels>", "reason")
    picked = pins if full else sorted(pins, key=lambda item: -item.channels)[:_ROWS]
    for item in picked:
        shown.row(item.node, item.op, f"{item.channels:,}", item.reason)
    out.show(shown)
    _tell_rest(out, len(pins) - len(picked), "more")


def _show_blocked(out: Screen, held: Sequence[Blocked], full: bool) -> None:
    """Print which constant channels stay: the node that holds them, why, and in which layers they are constant."""
    if not held:
        return
    out.heading("Blocked: constant or dead, but they have to stay")
    shown = Table("held by", "op", "channels>", "reason", "constant in")
    picked = held if full else sorted(held, key=lambda item: -item.channels)[:_ROWS]
    for item in picked:
        shown.row(item.node, item.op, f"{item.channels:,}", item.reason, constant_in(item, *(() if full else (2, 6))))
    out.show(shown)
    _tell_rest(out, len(held) - len(picked), "more")


def _tell_rewrites(out: Screen, held: Sequence[Blocked], options: Sequence[str]) -> None:
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
            out.print(styled(f"{sentence}, if that saves more than it costs", dim=True))


def _tell_rest(out: Screen, count: int, what: str) -> None:
    if count > 0:
        out.print(styled(f"… {count} {what}; --full shows all", dim=True))


def show_prune(report: PruneReport, output: str, *, untried: Sequence[str] = ()) -> None:
    """Print what a pruning did and where the result is.

    Args:
        untried: "residual", "gates": options that might have removed more.
    """
    out = Screen()
    out.print(styled(f"{report.model}:", bold=True), styled(report.reason, dim=True))
    out.show(cost_table(report.before, report.after))
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
        _print_calibration(out, report.calibration)
    if report.multiples:
        out.print(f"{report.multiples:,} channels are multiples of others, which take them over")
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
        out.heading("Output channels that changed")
        layers = Table("layer", "op", "before>", "after>")
        for layer in changed:
            layers.row(layer.node, layer.op, f"{layer.before:,}", f"{layer.after:,}" if layer.after else "gone")
        out.show(layers)
    _show_blocked(out, report.blocked, full=False)
    _tell_rewrites(out, report.blocked, untried)
    if report.message:
        out.print()
        out.print(styled(report.message, fg="yellow"))
    if report.agreement is not None and report.agreement.samples:
        _print_agreement(out, report.agreement)
    if report.validation is not None:
        out.print()
        _print_check(out, report)
    for note in report.notes:
        tell(f"note: {note}")
    out.print(f"wrote {output}")


def _print_calibration(out: Screen, found: CalibrationReport) -> None:
    out.print(
        f"{found.samples:,} samples from {found.data}: {found.constant_channels:,} channels stay within "
        f"{found.tolerance:g} of a constant; {found.removed_channels:,} output channels went for that reason alone"
    )
    if found.held_out:
        out.print(
            f"{found.contradicted_channels:,} more looked constant until the {found.held_out:,} held-out samples"
            + (": more data may well contradict others" if found.contradicted_channels else "")
        )
    else:
        tell("note: too few samples to hold some out, so nobody knows whether other data would agree")


def _print_agreement(out: Screen, found: Agreement) -> None:
    """Print how the result does on samples that were held out from the fit."""
    out.heading(f"Against the original on {found.samples:,} held-out samples")
    shown = Table("output", "relative error>", "same class>", "mask IoU>")
    for item in found.outputs:
        shares = ["" if share is None else f"{share:.1%}" for share in (item.argmax, item.iou)]
        shown.row(item.name, f"{item.error:.3g}", *shares)
    out.show(shown)
    if found.accuracy_before is not None and found.accuracy_after is not None:
        out.print(f"accuracy {found.accuracy_before:.2%} before, {found.accuracy_after:.2%} after")


def progress_line(what: str) -> None:
    """Overwrite the last line of stderr with what is being done, if stderr is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{what} …" if what else "\r\x1b[2K")
        sys.stderr.flush()


def _print_check(out: Screen, report: PruneReport) -> None:
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


def _print_latency(out: Screen, check: Validation) -> None:
    if check.latency_ratio is not None:
        out.print(
            f"latency in ONNX Runtime ({check.provider_ran}): {check.latency_a_ms:.3g} ms before, "
            f"{check.latency_b_ms:.3g} ms after: {check.latency_ratio:.2f} times as fast"
        )


def show_run(result: RunResult) -> None:
    """Print the outcome of a training run: size, accuracy, check, speed and files."""
    from prunec.report.findings import Cost

    out = Screen()
    out.print(styled(result.model, bold=True))
    out.show(cost_table(Cost(**result.before), Cost(**result.after)))
    changed = [layer for layer in result.layers if layer["before"] != layer["after"]]
    if changed:
        out.heading("Output channels that changed")
        layers = Table("layer", "op", "before>", "after>")
        for layer in changed:
            layers.row(layer["node"], layer["op"], f"{layer['before']:,}", f"{layer['after']:,}")
        out.show(layers)
    out.print()
    for score, moments in result.scores.items():
        values = [f"{MOMENT_NAMES[key]} {100 * value:.2f}%" for key, value in moments.items() if key in MOMENT_NAMES]
        out.print(f"test {SCORE_NAMES.get(score, score)}: {', '.join(values)}")
    _print_errors(out, result.validation, "the trained network")
    _print_latency(out, result.validation)
    _show_milestones(out, result)
    for sentence in (*result.reasons, *result.advice):
        out.print(styled(sentence, dim=True))
    out.print(f"in {result.output}: {', '.join(result.files)}")


def _show_milestones(out: Screen, result: RunResult) -> None:
    if not result.milestones:
        return
    out.heading("Milestones")
    name = SCORE_NAMES.get(result.metric, result.metric)
    shown = Table("folder", "parameters>", "MACs>", "of all>", f"{name}>", "speed>")
    before = result.score.get("before")
    score = "" if before is None else f"{100 * before:.2f}%"
    shown.row("unpruned", readable(result.before["params"]), readable(result.before["macs"]), "100.0%", score, "")
    for item in result.milestones:
        share, speed = percent(item["macs"], result.before["macs"]), item["latency_ratio"]
        shown.row(
            os.path.basename(item["folder"]), readable(item["params"]), readable(item["macs"]), share,
            f"{100 * item['score']['after']:.2f}%", "" if speed is None else f"{speed:.2f}×",
        )  # fmt: skip
    out.show(shown)


def cost_table(before: Cost, after: Cost) -> Table:
    """Return a table of a network's size before and after."""
    shown = Table("", "before>", "after>", "change>")
    for name, a, b in (
        ("parameters", before.params, after.params),
        ("MACs", before.macs, after.macs),
        ("activations", before.activations, after.activations),
        ("channels", before.channels, after.channels),
    ):
        shown.row(name, readable(a), readable(b), change(a, b))
    return shown


def show_validation(result: Validation, a: str, b: str) -> None:
    """Print a comparison of two models."""
    out = Screen()
    out.print(f"A {a}\nB {b}")
    _print_errors(out, result, "A")
    families = Table("inputs", "relative error>")
    for family, error in result.families.items():
        families.row(family, f"{error:.2e}")
    out.show(families)
    if result.latency_ratio is not None:
        out.print(
            f"latency on {result.provider_ran}: A {result.latency_a_ms:.3g} ms, B {result.latency_b_ms:.3g} ms, "
            f"B is {result.latency_ratio:.2f} times as fast (medians of interleaved runs)"
        )


def _print_errors(out: Screen, result: Validation, reference: str) -> None:
    verdict = styled(f"agrees with {reference}:", fg="green")
    if not result.passed:
        verdict = styled(f"DIFFERS from {reference}:", fg="red", bold=True)
    out.print(
        verdict,
        f"max error {result.max_abs_error:.2e}, relative {result.max_rel_error:.2e} "
        f"(tolerance {result.tolerance:g}, on {result.provider_ran})",
    )
    for note in result.notes:
        tell(f"note: {note}")


def show_doctor(findings: Findings) -> None:
    """Print what ``prunec doctor`` found."""
    out = Screen()
    out.print(f"Python {findings.python} on {findings.platform}, {findings.cpus} cores")
    packages = Table("package", "version")
    for name, version in findings.packages.items():
        packages.row(name, version or styled("not installed", dim=True))
    out.show(packages)
    out.print()
    out.print(f"PyTorch devices: {', '.join(findings.torch_devices) or 'none'}")
    providers = Table("ONNX Runtime provider", "works", "")
    for provider in findings.providers:
        providers.row(provider.name, "yes" if provider.works else "no", provider.note)
    out.show(providers)
    for note in findings.notes:
        out.print(styled(f"note: {note}", fg="yellow"))


def show_rows(rows: Iterable[Sequence[object]], *columns: str) -> None:
    """Print a plain table."""
    shown = Table(*columns)
    for cells in rows:
        shown.row(*cells)
    Screen().show(shown)
