"""The pages of the site: their code runs, in order; the schema is what plans have; the site's map is complete."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import prunec
from prunec.cli.main import execute

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^<!-- test: run -->\n```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
RUN = sorted(path.stem for path in DOCS.glob("*.md") if BLOCK.search(path.read_text(encoding="utf-8")))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": f"docs_{page}"}
    for language, text in BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, f"{page}.md", "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "prunec"
            assert execute(arguments) == 0, f"{line}\n{capfd.readouterr().err}"


def test_these_pages_run() -> None:
    assert {"tour", "toolchains", "extending", "passes", "faq", "plan"} <= set(RUN)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_new_blocks_say_how_they_are_tested(path: Path) -> None:
    """On the pages that run: nothing is shown that neither runs nor says that it does not."""
    if path.stem not in RUN:
        return
    text = path.read_text(encoding="utf-8")
    shown = re.findall(r"^```(?:sh|python)$", text, re.MULTILINE)
    marked = re.findall(r"^<!-- test: (?:run|parse|none) -->\n```(?:sh|python)$", text, re.MULTILINE)
    assert len(shown) == len(marked)


def test_the_schema_of_plans_is_the_one_that_they_have() -> None:
    page = (DOCS / "plan.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    own = {"format", "version"}
    assert listed == own | {field.name for field in fields(prunec.PrunePlan)}


def test_every_page_is_on_the_map() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)) == {path.name for path in DOCS.glob("*.md")}


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    shown = {name.rsplit(".", 1)[1] for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    assert set(prunec.__all__) <= shown


def test_the_changelog_has_this_version() -> None:
    page = (DOCS / "changelog.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\S+)", page, re.MULTILINE)
    assert versions[:2] == ["Unreleased", prunec.__version__]
    assert versions[1:] == sorted(versions[1:], reverse=True, key=lambda v: tuple(map(int, v.split("."))))
