"""The page of an analysis: layers with the state of their channels, the graph, groups and pins.

Owns that page only; the frame and style are prunec/report/run_page.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunec.report.charts import stacked_bar, text
from prunec.report.findings import Analysis, Blocked, LayerSummary, PinReport, constant_in, percent, readable
from prunec.report.run_page import html_table, name_cell, page, section, tiles

_NEUTRAL = "var(--c0)"
_GOLDEN_ANGLE = 137.508
_BOX = (176, 30)
_GAP = (22, 30)
# With more layers than this a drawing is no longer looked at; the tables say the same.
_DRAWN = 400


def analysis_page(analysis: Analysis) -> str:
    """Return the page, one self-contained HTML document."""
    colours = group_colours(analysis)
    counts, gone = analysis.channels, analysis.removable
    head = [
        (readable(analysis.params), "parameters", ""),
        (readable(analysis.macs), "MACs, batch 1", ""),
        (f"{counts.prunable:,} of {counts.total:,}", "channels prunable", ""),
        (f"{counts.constant:,} / {counts.dead:,}", "channels constant / dead", ""),
        (f"{gone.channels:,}", "channels removable exactly", "good" if gone.channels else ""),
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
        section("Blocked: constant or dead, and yet they stay", blocked_table(analysis.blocked)),
        section("Pinned: cannot be removed", pins_table(analysis.pins)),
        section("Layers", _legend(), _layers(analysis.layers, colours)),
        section("Graph", _drawing(analysis.layers, colours)),
        section("Coupled groups", _groups(analysis, colours)),
    ]
    return page(f"{analysis.model} analysed", "".join(body))


def group_colours(analysis: Analysis) -> dict[int, str]:
    """Give every group that couples several layers a hue of its own, as CSS; neighbours get distant hues."""
    layers = {layer.node for layer in analysis.layers}
    shared = [group for group in analysis.groups if len({member.node for member in group.members} & layers) > 1]
    return {group.id: f"hsl({index * _GOLDEN_ANGLE % 360:.0f} 62% 52%)" for index, group in enumerate(shared)}


def depths(layers: Sequence[LayerSummary]) -> dict[str, int]:
    """Return how many layers lie above each one, along its longest path; inputs that are not layers count 0."""
    depth: dict[str, int] = {}
    for layer in layers:
        depth[layer.node] = 1 + max((depth[name] for name in layer.inputs if name in depth), default=-1)
    return depth


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
    """Return the table of what must stay, and why."""
    rows = [(name_cell(item.node), text(item.op), f"{item.channels:,}", text(item.reason)) for item in pins]
    return html_table(("node", "op", "channels>", "reason"), rows)


def blocked_table(held: Sequence[Blocked]) -> str:
    """Return the table of what is constant or dead and stays, and what holds it."""
    rows = [
        (
            name_cell(item.node),
            text(item.op),
            f"{item.channels:,}",
            text(item.reason),
            name_cell(constant_in(item, 4, 12)),
        )
        for item in held
    ]
    return html_table(("held by", "op", "channels>", "reason", "constant in"), rows)


def _drawing(layers: Sequence[LayerSummary], colours: Mapping[int, str]) -> str:
    """Draw layers as boxes, top to bottom along the data flow, in the colour of their coupled group."""
    if not any(layer.inputs for layer in layers) or len(layers) > _DRAWN:
        return ""
    places = _places(layers)
    width = round(max(x for x, _ in places.values()) + _BOX[0] + 8)
    height = round(max(y for _, y in places.values()) + _BOX[1] + 4)
    edges = "".join(
        _edge(places[name], places[layer.node]) for layer in layers for name in layer.inputs if name in places
    )
    boxes = "".join(_box(layer, places[layer.node], _colour(layer, colours)) for layer in layers)
    note = '<p class="soft">A layer has the colour of the group that its output channels belong to.</p>'
    return (
        f'{note}<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{edges}{boxes}</svg>'
    )


def _places(layers: Sequence[LayerSummary]) -> dict[str, tuple[float, float]]:
    """Return the top left corner of each layer's box: a row per depth, each box near what it reads."""
    depth = depths(layers)
    rows: dict[int, list[LayerSummary]] = {}
    for layer in layers:
        rows.setdefault(depth[layer.node], []).append(layer)
    pitch, rise = _BOX[0] + _GAP[0], _BOX[1] + _GAP[1]
    width = max(len(row) for row in rows.values()) * pitch
    places: dict[str, tuple[float, float]] = {}
    for level in sorted(rows):
        row = sorted(rows[level], key=lambda layer: _middle(layer, places, width / 2))
        start = (width - len(row) * pitch) / 2 + 4
        places.update({layer.node: (start + index * pitch, level * rise + 4.0) for index, layer in enumerate(row)})
    return places


def _middle(layer: LayerSummary, places: Mapping[str, tuple[float, float]], otherwise: float) -> float:
    found = [places[name][0] for name in layer.inputs if name in places]
    return sum(found) / len(found) if found else otherwise


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0 = start[0] + _BOX[0] / 2, start[1] + _BOX[1]
    x1, y1 = end[0] + _BOX[0] / 2, end[1]
    # A long edge down its own column swings out beside the boxes that it passes.
    passes = y1 - y0 > _GAP[1] + 1 and abs(x1 - x0) < _BOX[0]
    swing = _BOX[0] * 0.66 + 0.05 * (y1 - y0) if passes else 0.0
    middle = (y0 + y1) / 2
    path = f"M{x0:.0f} {y0:.0f}C{x0 + swing:.0f} {middle:.0f} {x1 + swing:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"
    return f'<path d="{path}" fill="none" stroke="var(--c0)" stroke-opacity=".5"/>'


def _box(layer: LayerSummary, place: tuple[float, float], colour: str) -> str:
    x, y = place
    label = layer.node if len(layer.node) <= 18 else "…" + layer.node[-17:]
    tip = f"{layer.node}: {layer.op}, {layer.channels} channels, {layer.prunable} prunable"
    return (
        f"<g><title>{text(tip)}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_BOX[0]}" height="{_BOX[1]}" rx="6" fill="var(--card)"/>'
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_BOX[0]}" height="{_BOX[1]}" rx="6" fill="{colour}" '
        f'fill-opacity=".18" stroke="{colour}"/>'
        f'<text x="{x + 9:.0f}" y="{y + 19:.0f}">{text(label)}</text>'
        f'<text class="tick" x="{x + _BOX[0] - 7:.0f}" y="{y + 19:.0f}" text-anchor="end">{layer.channels}</text></g>'
    )


def _colour(layer: LayerSummary, colours: Mapping[int, str]) -> str:
    return next((colours[group] for group in layer.groups if group in colours), _NEUTRAL)


def _name(colour: str, name: str) -> str:
    return name_cell(name, _chip(colour))


def _chip(colour: str) -> str:
    return f'<span class="chip" style="background:{colour}"></span>'
