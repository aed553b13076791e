"""The page of an analysis: layers with the state of their channels, the graph, groups and pins.

Owns that page only; the frame and style are prunec/report/run_page.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunec.report.charts import stacked_bar, text
from prunec.report.drawing import drawing
from prunec.report.findings import Analysis, Blocked, LayerSummary, PinReport, Removable
from prunec.report.run_page import html_table, name_cell, page, section, tiles
from prunec.report.wording import constant_in, percent, readable

_NEUTRAL = "var(--c0)"
_GOLDEN_ANGLE = 137.508


def analysis_page(analysis: Analysis) -> str:
    """Return the page, one self-contained HTML document."""
    colours = group_colours(analysis)
    counts, gone = analysis.channels, analysis.removable
    head = [
        (readable(analysis.params), "parameters", ""),
        (readable(analysis.macs), "MACs, batch 1", ""),
        (f"{counts.prunable:,} of {counts.total:,}", "channels prunable", ""),
        (f"{counts.constant:,} / {counts.dead:,}", "channels constant / dead", ""),
        (f"{gone.channels:,}", f"channels removable exactly{_multiples(gone)}", "good" if gone.channels else ""),
        (
            f"{percent(gone.params, analysis.params)}",
            f"of parameters with them, {percent(gone.macs, analysis.macs)} of MACs",
            "",
        ),
    ]
    body = [
        f"<h1>{text(analysis.model)}</h1>",
        f'<p class="soft">prunec analyze, {text(analysis.frontend)} frontend, {analysis.nodes:,} nodes</p>',
        tiles(head),
        "".join(f'<p class="soft">{text(note)}</p>' for note in analysis.notes),
        section("Blocked: constant or dead, but they have to stay", blocked_table(analysis.blocked)),
        section("Pinned: cannot be removed", pins_table(analysis.pins)),
        section("Layers", _legend(), _layers(analysis.layers, colours)),
        section("Graph", _graph(analysis.layers, colours)),
        section("Coupled groups", _groups(analysis, colours)),
    ]
    return page(f"{analysis.model} analysed", "".join(body))


def _multiples(gone: Removable) -> str:
    return f", {gone.multiples:,} of them multiples of others" if gone.multiples else ""


def group_colours(analysis: Analysis) -> dict[int, str]:
    """Give every group that couples several layers its own hue, as CSS; consecutive groups get distant hues."""
    layers = {layer.node for layer in analysis.layers}
    shared = [group for group in analysis.groups if len({member.node for member in group.members} & layers) > 1]
    return {group.id: f"hsl({index * _GOLDEN_ANGLE % 360:.0f} 62% 52%)" for index, group in enumerate(shared)}


def _legend() -> str:
    parts = (("prunable", "c1"), ("constant", "c2"), ("dead", "c8"), ("pinned", "c0"))
    chips = "".join(f"{_chip(f'var(--{colour})')}{name}&emsp;" for name, colour in parts)
    return f'<p class="soft">Output channels: {chips}</p>'


def _layers(layers: Sequence[LayerSummary], colours: Mapping[int, str]) -> str:
    rows = []
    for layer in layers:
        rest = max(layer.channels - layer.pinned - layer.constant - layer.dead, 0)
        parts = (
            ("prunable, in use", "c1", rest),
            ("constant", "c2", min(layer.constant, layer.channels)),
            ("dead", "c8", min(layer.dead, layer.channels)),
            ("pinned", "c0", min(layer.pinned, max(layer.channels - layer.constant - layer.dead, 0))),
        )
        rows.append(
            (
                _name(_colour(layer, colours), layer.node), text(layer.op), f"{layer.channels:,}",
                stacked_bar(parts, width=90), f"{layer.prunable:,}", f"{layer.constant:,}" if layer.constant else "",
                f"{layer.dead:,}" if layer.dead else "", readable(layer.params), readable(layer.macs),
                name_cell(layer.note),
            )
        )  # fmt: skip
    columns = ("layer", "op", "channels>", "", "prunable>", "constant>", "dead>", "params>", "MACs>", "note")
    return html_table(columns, rows)


def _groups(analysis: Analysis, colours: Mapping[int, str]) -> str:
    rows = []
    for group in sorted(analysis.groups, key=lambda group: -group.channels * group.params_per_channel):
        members = [f"{member.param} (axis {member.axis})" for member in group.members]
        shown = ", ".join(members[:6]) + (f" and {len(members) - 6} more" if len(members) > 6 else "")
        name = _name(colours.get(group.id, _NEUTRAL), str(group.id))
        prunable = "yes" if group.prunable else "pinned"
        cost = (readable(group.params_per_channel), readable(group.macs_per_channel))
        rows.append((name, f"{group.channels:,}", prunable, *cost, name_cell(shown)))
    return html_table(("group", "channels>", "prunable", "params each>", "MACs each>", "members"), rows)


def pins_table(pins: Sequence[PinReport]) -> str:
    """Return the table of channels that must stay, and why."""
    rows = [(name_cell(item.node), text(item.op), f"{item.channels:,}", name_cell(item.reason)) for item in pins]
    return html_table(("node", "op", "channels>", "reason"), rows)


def blocked_table(held: Sequence[Blocked]) -> str:
    """Return the table of constant or dead channels that stay, and of the nodes that hold them."""
    rows = [
        (
            name_cell(item.node),
            text(item.op),
            f"{item.channels:,}",
            name_cell(item.reason),
            name_cell(constant_in(item, 4, 12)),
        )
        for item in held
    ]
    return html_table(("held by", "op", "channels>", "reason", "constant in"), rows)


def _graph(layers: Sequence[LayerSummary], colours: Mapping[int, str]) -> str:
    drawn = drawing(layers, {layer.node: _colour(layer, colours) for layer in layers})
    note = "A layer has the colour of its output channels' group. Edges that longer paths imply are not drawn."
    return f'<p class="soft">{note}</p>{drawn}' if drawn else ""


def _colour(layer: LayerSummary, colours: Mapping[int, str]) -> str:
    return next((colours[group] for group in layer.groups if group in colours), _NEUTRAL)


def _name(colour: str, name: str) -> str:
    return name_cell(name, _chip(colour))


def _chip(colour: str) -> str:
    return f'<span class="chip" style="background:{colour}"></span>'
