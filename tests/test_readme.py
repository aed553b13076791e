"""What the README shows is what happens: its commands run, its Python runs, its links lead somewhere.

A fenced block is preceded by ``<!-- test: run -->`` (executed here), ``<!-- test: parse -->`` (too long to
run here: its options must be known) or ``<!-- test: none -->`` (about installing); a block of commands
without such a mark fails.
"""

from __future__ import annotations

import pydoc
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from prunec.cli.main import execute, main

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    mark: str
    language: str
    text: str


def _blocks() -> list[Block]:
    pattern = r"(?:<!-- test: (\w+) -->\n)?```(\w+)\n(.*?)```"
    return [Block(*found) for found in re.findall(pattern, README, re.DOTALL)]


def _commands(mark: str) -> list[str]:
    lines = "\n".join(block.text for block in _blocks() if block.mark == mark and block.language == "sh")
    joined = lines.replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.strip()]


def test_every_block_of_commands_says_how_it_is_tested() -> None:
    assert all(block.mark in {"run", "parse", "none"} for block in _blocks() if block.language in {"sh", "python"})
    assert _commands("run")
    assert _commands("parse")


def test_the_commands_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in _commands("run"):
        program, *arguments = shlex.split(command, comments=True)
        assert program == "prunec"
        status = execute(arguments)
        assert status == 0, f"{command}\n{capfd.readouterr().err}"


def _shown_in_docs() -> list[str]:
    """Return the commands of the other pages, in fences or indented; they are too long to run here."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    lines = re.findall(r"^(?:    )?(?:torchrun .*-m )?(prunec [a-z-]+ .*)$", "\n".join(texts), re.MULTILINE)
    return sorted({line for line in lines if line.split()[1] in main.commands})


def test_the_other_pages_show_commands() -> None:
    assert len(_shown_in_docs()) > 10


@pytest.mark.parametrize("command", [*_commands("parse"), *_shown_in_docs()])
def test_the_long_commands_have_options_that_exist(command: str) -> None:
    program, name, *arguments = shlex.split(command, comments=True)
    assert program == "prunec"
    with main.make_context("prunec", [name]) as context:
        subcommand = main.commands[name]
        assert isinstance(subcommand, click.Command)
        subcommand.make_context(name, arguments, parent=context)


@pytest.mark.parametrize("path", [*DOCUMENTS, *(ROOT / "prunec").rglob("*.py")], ids=lambda path: path.name)
def test_what_pages_and_messages_call_by_name_is_there(path: Path) -> None:
    """``prunec.NAME`` as a page, a docstring or a message writes it, and what a page imports."""
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|use )(prunec(?:\.[A-Za-z_]\w*)+)", text))
    if path.suffix == ".md":
        for module, names in re.findall(r"^from (prunec[\w.]*) import (.+)$", text, re.MULTILINE):
            named |= {f"{module}.{name.strip()}" for name in names.split(",")}
    for name in sorted(named):
        assert _is_there(name), f"{path.name} speaks of {name}"


def _is_there(name: str) -> bool:
    try:
        return pydoc.locate(name) is not None
    except pydoc.ErrorDuringImport as error:  # it is there, and builds on a library that is not installed
        return isinstance(error.value, ModuleNotFoundError) and not str(error.value.name).startswith("prunec")


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippets = [block.text for block in _blocks() if block.mark == "run" and block.language == "python"]
    assert snippets
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_to_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert document.parent.joinpath(target).exists(), f"{document.name} links to {target}"
