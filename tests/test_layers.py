"""Who may import whom: the direction of STYLE's diagram, checked on the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"prunec": ROOT / "prunec", "prunec.passes": ROOT / "passes", "prunec.cli": ROOT / "cli"}

BASE = {"prunec.errors", "prunec.ir.ops", "prunec.ir.graph", "prunec.ir.labels", "prunec.ir.plan", "prunec.ir.edits"}
"""The data types that every layer shares; among themselves they import downward only."""

ALLOWED = {
    "prunec.errors": set[str](),
    "prunec.ir.ops": set[str](),
    "prunec.ir.graph": set[str](),
    "prunec.ir.labels": {"prunec.errors", "prunec.ir.graph"},
    "prunec.ir.plan": {"prunec.errors"},
    "prunec.ir.edits": {"prunec.ir.graph", "prunec.errors"},
}


def module_name(path: Path, package: str, folder: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


def sources() -> Iterator[tuple[str, Path]]:
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            yield module_name(path, package, folder), path


MODULES = dict(sources())


def imports(name: str, *, lazy: bool) -> set[str]:
    """Return the modules that a module imports, type-checking blocks left out; ``lazy`` adds those inside functions."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
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
    return found


def ours(name: str) -> set[str]:
    """Return the modules of prunec that a module imports anywhere."""
    return {entry for entry in imports(name, lazy=True) if entry.split(".")[0] == "prunec" and entry != "prunec"}


def layer(name: str) -> str:
    if name in BASE:
        return "base"
    if name == "prunec.__main__":
        return "cli"
    for package in ("frontends", "backends", "passes", "cli", "training", "models"):
        if name.startswith(f"prunec.{package}"):
            return package
    return "core"


def test_all_three_folders_are_read() -> None:
    assert {"prunec.ir.graph", "prunec.passes.channels", "prunec.passes.rules.channels", "prunec.cli.main"} <= set(
        MODULES
    )


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_the_folders_by_their_top_level_names(name: str) -> None:
    tops = {entry.split(".")[0] for entry in imports(name, lazy=True)}
    assert not tops & {"passes", "cli", "tests"}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_data_types_import_downward_only(name: str) -> None:
    inside = {entry for entry in imports(name, lazy=False) if entry.startswith("prunec.")}
    assert inside <= ALLOWED[name]


@pytest.mark.parametrize("name", sorted(n for n in MODULES if layer(n) == "passes"))
def test_a_pass_knows_no_frontend_and_no_framework(name: str) -> None:
    found = imports(name, lazy=True)
    assert not {entry for entry in found if layer(entry) in ("frontends", "backends", "cli", "training", "models")}
    assert not {
        entry for entry in found if entry.split(".")[0] in ("torch", "onnx", "onnx_graphsurgeon", "onnxruntime")
    }
    assert {entry for entry in ours(name) if layer(entry) == "core"} == set()


@pytest.mark.parametrize(
    "name", sorted(n for n in MODULES if "prunec.passes.rules" in n and n != "prunec.passes.rules")
)
def test_a_rule_knows_no_pass(name: str) -> None:
    inside = {entry for entry in ours(name) if entry.startswith("prunec.passes")}
    assert all(entry.startswith("prunec.passes.rules") for entry in inside)


@pytest.mark.parametrize("name", sorted(n for n in MODULES if layer(n) == "frontends"))
def test_a_frontend_knows_no_backend(name: str) -> None:
    assert not {entry for entry in ours(name) if layer(entry) in ("backends", "cli", "training")}
    assert not {entry for entry in ours(name) if entry in ("prunec.api", "prunec.passes.selection.select")}


@pytest.mark.parametrize("name", sorted(n for n in MODULES if layer(n) == "backends"))
def test_a_backend_decides_nothing(name: str) -> None:
    """It may read what lower.py made (Edits), never the passes that choose."""
    forbidden = ("select", "absorb", "liveness", "scores", "legal", "reads")
    assert not {entry for entry in ours(name) if entry in {f"prunec.passes.{p}" for p in forbidden}}
    assert not {entry for entry in ours(name) if layer(entry) in ("cli", "training") or entry == "prunec.api"}


@pytest.mark.parametrize("name", sorted(n for n in MODULES if layer(n) != "cli"))
def test_only_the_command_line_knows_the_command_line(name: str) -> None:
    assert not {
        entry
        for entry in imports(name, lazy=True)
        if entry.startswith("prunec.cli") or entry in ("click", "rich.click")
    }


@pytest.mark.parametrize(
    "name", ["prunec", "prunec.ir.graph", "prunec.api", "prunec.passes.selection.select", "prunec.cli.main"]
)
def test_torch_is_not_loaded_by_importing(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
