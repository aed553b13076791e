"""The drawing of a network: its layers as boxes, top to bottom along the data flow.

Owns the places of boxes and edges. The page chooses the colours of layers; the graph with all ops and channel
classes, as data, is passes/groups.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from prunec.report.charts import text
from prunec.report.findings import LayerSummary

if TYPE_CHECKING:
    import networkx as nx

Place = tuple[float, float]

_BOX = (176, 30)
_GAP = (22, 30)
# Nobody can read a drawing with more layers than this; the tables have the same content.
_DRAWN = 400


def drawing(layers: Sequence[LayerSummary], colours: Mapping[str, str]) -> str:
    """Return an SVG of the layers; "" if nothing connects them, or if there are too many.

    Args:
        colours: layer -> CSS colour.
    """
    if not any(layer.inputs for layer in layers) or len(layers) > _DRAWN:
        return ""
    graph = flow(layers)
    places = _places(graph)
    edges = [(places[a], places[b]) for a, b in graph.edges]
    right = max(
        [x + _BOX[0] for x, _ in places.values()]
        + [x + _BOX[0] / 2 + 0.75 * _swing(s, e) for s, e in edges for x in (s[0], e[0])]
    )
    width, height = round(right + 8), round(max(y for _, y in places.values()) + _BOX[1] + 4)
    lines = "".join(_edge(*edge) for edge in edges)
    boxes = "".join(_box(layer, places[layer.node], colours[layer.node]) for layer in layers)
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{lines}{boxes}</svg>'


def flow(layers: Sequence[LayerSummary]) -> nx.DiGraph:
    """Return which layer reads which, without what longer paths imply: a residual stream is read by all that follow."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(layer.node for layer in layers)
    graph.add_edges_from((name, layer.node) for layer in layers for name in layer.inputs if name in graph)
    return nx.transitive_reduction(graph)


def _places(graph: nx.DiGraph) -> dict[str, Place]:
    """Return the top left corner of each layer's box: a row per generation, each box near what it reads."""
    import networkx as nx

    rows = list(nx.topological_generations(graph))
    pitch, rise = _BOX[0] + _GAP[0], _BOX[1] + _GAP[1]
    width = max(len(row) for row in rows) * pitch
    places: dict[str, Place] = {}
    for level, row in enumerate(rows):
        start = (width - len(row) * pitch) / 2 + 4
        ordered = sorted(row, key=lambda name: _middle(graph.predecessors(name), places, width / 2))
        places.update({name: (start + index * pitch, level * rise + 4.0) for index, name in enumerate(ordered)})
    return places


def _middle(names: Iterable[str], places: Mapping[str, Place], otherwise: float) -> float:
    found = [places[name][0] for name in names]
    return sum(found) / len(found) if found else otherwise


def _swing(start: Place, end: Place) -> float:
    """Return how far a long edge down its own column swings out beside the boxes that it passes."""
    passes = end[1] - start[1] > _BOX[1] + _GAP[1] + 1 and abs(end[0] - start[0]) < _BOX[0]
    return _BOX[0] * 0.66 + 0.05 * (end[1] - start[1]) if passes else 0.0


def _edge(start: Place, end: Place) -> str:
    x0, y0 = start[0] + _BOX[0] / 2, start[1] + _BOX[1]
    x1, y1 = end[0] + _BOX[0] / 2, end[1]
    swing = _swing(start, end)
    middle = (y0 + y1) / 2
    path = f"M{x0:.0f} {y0:.0f}C{x0 + swing:.0f} {middle:.0f} {x1 + swing:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"
    return f'<path d="{path}" fill="none" stroke="var(--c0)" stroke-opacity=".5"/>'


def _box(layer: LayerSummary, place: Place, colour: str) -> str:
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
