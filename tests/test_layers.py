"""Who may import whom: the order of the rooms, checked on the source of every module."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"prunec": ROOT / "prunec", "prunec.passes": ROOT / "passes", "prunec.cli": ROOT / "cli"}

ROOMS = (
    "prunec.errors",
    "prunec.files",
    "prunec.garbage",
    "prunec.ir",
    "prunec.frontends.fx.ops",
    "prunec.frontends.fx.running",
    "prunec.frontends.fx.tracing",
    "prunec.frontends.fx",
    "prunec.frontends.onnx.loading",
    "prunec.frontends.onnx.sizes",
    "prunec.frontends.onnx.folding",
    "prunec.frontends.onnx.ops",
    "prunec.frontends.onnx",
    "prunec.importer",
    "prunec.backends.fx",
    "prunec.backends.onnx",
    "prunec.passes.rules",
    "prunec.passes.rules.channels",
    "prunec.passes.rules.constants",
    "prunec.passes.rules.profiles",
    "prunec.passes",
    "prunec.passes.sparsity",
    "prunec.passes.selection",
    "prunec.passes.lowering",
    "prunec.passes.rewrites",
    "prunec.passes.fitting",
    "prunec.runtime",
    "prunec.data",
    "prunec.fitting",
    "prunec.timing",
    "prunec.report",
    "prunec.check",
    "prunec.models",
    "prunec.lookup",
    "prunec.pipeline",
    "prunec.api",
    "prunec.toolchain",
    "prunec.sweep",
    "prunec.bench",
    "prunec.training.learning",
    "prunec.training.data",
    "prunec.training.sparsity",
    "prunec.training.budget",
    "prunec.training.logs",
    "prunec.training.settings",
    "prunec.training.run",
    "prunec.training",
    "prunec.cli",
    "prunec.__main__",
)
"""The rooms, in the order in which data flow: a room imports from those before it, and from itself.

docs/architecture.md's table has the same order.
"""

MOST_FILES = 12
"""Files of a room, at most: more, and it is two rooms."""


def module_name(path: Path, package: str, folder: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


def sources() -> Iterator[tuple[str, Path]]:
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            yield module_name(path, package, folder), path


MODULES = dict(sources())


@cache
def imports(name: str) -> frozenset[str]:
    """Return the modules that a module imports anywhere, those inside functions too, type-checking blocks left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide the direction"
            base = node.module or ""
            whole = {f"{base}.{alias.name}" for alias in node.names}
            found.update(entry if entry in MODULES else base for entry in whole)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    return frozenset(found)


def ours(name: str) -> set[str]:
    """Return the modules of prunec that a module imports anywhere."""
    return {entry for entry in imports(name) if entry.split(".")[0] == "prunec" and entry != "prunec"}


def room(name: str) -> str:
    """Return the room of a module: its folder, or itself where it stands alone at the top."""
    if name in ROOMS:
        return name
    parent = name.rsplit(".", 1)[0]
    return name if parent == "prunec" else parent


def within(name: str, *rooms: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in rooms)


def is_room(name: str) -> bool:
    return MODULES[name].name == "__init__.py"


NAMED = sorted(set(MODULES) - {"prunec", "prunec.frontends", "prunec.backends"})
"""All modules but those that hold only names or a sentence."""


def test_all_three_folders_are_read() -> None:
    read = {"prunec.ir.graph", "prunec.passes.channels", "prunec.passes.rules.channels.table", "prunec.cli.main"}
    assert read <= set(MODULES)


@pytest.mark.parametrize("name", NAMED)
def test_a_room_imports_from_those_before_it(name: str) -> None:
    place = {entry: index for index, entry in enumerate(ROOMS)}
    here = room(name)
    assert here in place, f"{here} has no place in the order of rooms"
    for entry in ours(name):
        there = room(entry)
        assert place[there] <= place[here], f"{name} imports {entry}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = nx.DiGraph((name, entry) for name in MODULES for entry in ours(name))
    assert [found for found in nx.strongly_connected_components(graph) if len(found) > 1] == []


@pytest.mark.parametrize("name", [name for name in NAMED if is_room(name)])
def test_a_room_says_what_it_owns(name: str) -> None:
    assert "Owns" in (ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))) or "")


def test_no_room_holds_too_many_files() -> None:
    rooms = Counter(path.parent for name, path in MODULES.items() if not is_room(name))
    assert {str(path): count for path, count in rooms.items() if count > MOST_FILES} == {}


def test_tests_stand_in_folders_named_like_the_rooms() -> None:
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    rooms = {path.parent.relative_to(ROOT) for name, path in MODULES.items() if is_room(name)}
    mirrored = {Path(*room.parts[room.parts[0] == "prunec" :]) for room in rooms}
    assert folders - mirrored == {Path("frontends/onnx/refused")}


def test_the_page_lists_the_rooms_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z_/]+)/` \|", page, flags=re.MULTILINE)
    rooms = [MODULES[name].parent for name in ROOMS if name in MODULES and is_room(name)]
    assert listed == [str(path.relative_to(ROOT)) for path in rooms]


def drawn_imports() -> str:
    """Return who imports whom, a line per room: what a longer way implies is left out, and errors, files, garbage."""
    edges = ((room(name), room(entry)) for name in NAMED for entry in ours(name))
    common = {"prunec.errors", "prunec.files", "prunec.garbage"}
    graph = nx.DiGraph((a, b) for a, b in edges if a != b and not {a, b} & common)
    reduced = nx.transitive_reduction(graph)
    short = {name: name.removeprefix("prunec.").replace(".", "/") for name in ROOMS}
    place = {name: index for index, name in enumerate(ROOMS)}
    lines = [
        f"    {short[name]:22} ← {', '.join(short[entry] for entry in sorted(reduced[name], key=place.__getitem__))}"
        for name in ROOMS
        if name in reduced and any(reduced[name])
    ]
    return "\n".join(lines) + "\n"


def test_the_page_draws_the_imports() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert drawn_imports() in page, f"docs/architecture.md should say\n{drawn_imports()}"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if within(n, "prunec.ir", "prunec.passes")))
def test_a_pass_knows_no_framework(name: str) -> None:
    found = {entry.split(".")[0] for entry in imports(name)}
    assert not found & {"torch", "onnx", "onnx_graphsurgeon", "onnxruntime"}
    assert not {entry for entry in ours(name) if within(entry, "prunec.frontends", "prunec.backends")}


@pytest.mark.parametrize("name", sorted(n for n in MODULES if within(n, "prunec.passes.rules")))
def test_a_rule_knows_no_pass(name: str) -> None:
    assert all(within(entry, "prunec.passes.rules", "prunec.ir", "prunec.errors") for entry in ours(name))


@pytest.mark.parametrize("name", sorted(n for n in MODULES if within(n, "prunec.backends")))
def test_a_backend_decides_nothing(name: str) -> None:
    """It reads what lowering made (Edits), never the passes."""
    assert not {entry for entry in ours(name) if within(entry, "prunec.passes")}


@pytest.mark.parametrize("name", sorted(n for n in MODULES if not within(n, "prunec.cli", "prunec.__main__")))
def test_only_the_command_line_knows_the_command_line(name: str) -> None:
    assert not {entry for entry in imports(name) if within(entry, "prunec.cli") or entry in ("click", "rich.click")}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_the_folders_by_their_top_level_names(name: str) -> None:
    assert not {entry.split(".")[0] for entry in imports(name)} & {"passes", "cli", "tests"}


@pytest.mark.parametrize(
    "name", ["prunec", "prunec.ir.graph", "prunec.api", "prunec.passes.selection.select", "prunec.cli.main"]
)
def test_torch_is_not_loaded_by_importing(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
