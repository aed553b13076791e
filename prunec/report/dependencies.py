"""The dependency graph as a file: GraphML (yEd, Gephi, networkx), JSON (node-link, as networkx and d3 read it), or DOT.

Owns the three formats. The graph is passes/groups.py's; the ending of a file's name chooses its format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prunec.errors import BadInput

if TYPE_CHECKING:
    import networkx as nx


def writer(path: Path) -> Callable[[nx.DiGraph], str]:
    """Return the function that writes the format of a file with this name.

    Raises:
        BadInput: another ending than ``WRITERS`` has.
    """
    found = WRITERS.get(path.suffix.lower())
    if found is None:
        raise BadInput(
            f"{path} ends in {path.suffix or 'nothing'!r}, which is no graph format that prunec writes",
            do=f"let the name end in {', '.join(WRITERS)}",
        )
    return found


def _graphml(graph: nx.DiGraph) -> str:
    import networkx as nx

    return "\n".join([*nx.generate_graphml(_plain(graph)), ""])


def _node_link(graph: nx.DiGraph) -> str:
    nodes = [{"id": name, **_jsonable(attrs)} for name, attrs in graph.nodes.items()]
    edges = [{"source": a, "target": b, **_jsonable(attrs)} for (a, b), attrs in graph.edges.items()]
    document = {"directed": True, "multigraph": False, "graph": {"name": graph.name}, "nodes": nodes, "edges": edges}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _dot(graph: nx.DiGraph) -> str:
    lines = [f"digraph {_quoted(graph.name or 'network')} {{", "  rankdir=TB; node [shape=box, fontsize=10];"]
    for name, attrs in graph.nodes.items():
        label = f"{name}\\n{_escaped(attrs['source'] or attrs['op'])}"
        style = ", style=filled, fillcolor=lightgrey" if attrs["pinned"] else ""
        lines.append(f'  {_quoted(name)} [label="{_escaped(name)}{label[len(name) :]}"{style}];')
    for (a, b), attrs in graph.edges.items():
        lines.append(f'  {_quoted(a)} -> {_quoted(b)} [label="{len(attrs["classes"]) or ""}", fontsize=8];')
    return "\n".join([*lines, "}", ""])


def _plain(graph: nx.DiGraph) -> nx.DiGraph:
    """Return a copy whose attributes are text and numbers, all that GraphML holds."""
    import networkx as nx

    copy = nx.DiGraph(name=_printable(graph.name))
    for name, attrs in graph.nodes.items():
        copy.add_node(_printable(name), **_texts(attrs))
    for (a, b), attrs in graph.edges.items():
        copy.add_edge(_printable(a), _printable(b), **_texts(attrs))
    return copy


def _texts(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _text(value) for key, value in attrs.items()}


def _text(value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        return " ".join("?" if item is None else _printable(str(item)) for item in value)
    return "" if value is None else _printable(str(value))


def _jsonable(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in attrs.items()}


def _printable(text: str) -> str:
    """Return a name without the control characters that XML forbids."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


WRITERS: Mapping[str, Callable[[nx.DiGraph], str]] = MappingProxyType(
    {".graphml": _graphml, ".json": _node_link, ".dot": _dot}
)
"""A file name's ending -> what makes its text."""
