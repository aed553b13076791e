"""How sentences and tables fit into a terminal: wrapping, narrow columns, wide characters, styles."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from prunec.cli.terminal import Screen, Table, columns, styled, wrapped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, draw: Callable[[Screen], None], **environment: str) -> str:
    """Return what a terminal of 30 columns gets."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "30", **environment}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    draw(Screen())
    return terminal.getvalue()


def lines(table: Table, width: int) -> list[str]:
    return [*table.lines(width)][1:]


def test_sentences_are_broken_between_words() -> None:
    assert wrapped("removed what is constant", 12) == ["removed what", "is constant"]


def test_a_path_longer_than_the_line_stays_whole() -> None:
    assert wrapped("wrote /a/folder/of/results.onnx", 12) == ["wrote", "/a/folder/of/results.onnx"]


def test_line_breaks_and_spaces_of_a_text_are_kept() -> None:
    assert wrapped("A  a\n\nB b", 80) == ["A  a", "", "B b"]


def test_styles_take_no_room() -> None:
    assert wrapped(f"{styled('agrees', bold=True)} with it", 11) == [f"{styled('agrees', bold=True)} with", "it"]


def test_numbers_are_aligned_to_the_right_and_words_to_the_left() -> None:
    table = Table("layer", "channels>")
    table.row("a", 8)
    table.row("longer", "1,024")
    assert lines(table, 80) == ["a              8", "longer     1,024"]


def test_chinese_names_count_two_columns_each() -> None:
    assert columns("卷积") == 4
    table = Table("layer", "op")
    table.row("卷积", "conv")
    table.row("conv1", "conv")
    assert lines(table, 80) == ["卷积   conv", "conv1  conv"]


def test_the_widest_column_of_words_gives_way() -> None:
    table = Table("layer", "channels>", "reason")
    table.row("features.0/Conv", 8, "its channels are an output of the network")
    assert lines(table, 50) == [
        "features.0/Conv         8  its channels are an",
        "                           output of the network",
    ]


def test_words_are_cut_in_tables_but_not_to_less_than_can_be_read() -> None:
    table = Table("layer", "channels>")
    table.row("/features/features.0/Conv", 8)
    assert lines(table, 20) == ["/features/featur         8", "es.0/Conv"]


def test_a_table_without_words_runs_over_the_edge() -> None:
    table = Table("a>", "b>")
    table.row("1,234,567", "1,234,567")
    assert lines(table, 10) == ["1,234,567  1,234,567"]


def test_a_terminal_gets_styles_and_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = styled("nothing", fg="yellow"), "was removed from this file"
    text = shown(monkeypatch, lambda screen: screen.print(*parts))
    assert text == "\x1b[33mnothing\x1b[0m was removed from this\nfile\n"


def test_names_that_look_like_markup_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "blocks[0][red]x[/red]:smile:"
    assert shown(monkeypatch, lambda screen: screen.print(name)) == f"{name}\n"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours_gets_none(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    text = shown(monkeypatch, lambda screen: screen.heading("Layers"), **environment)
    assert text == "\nLayers\n"


def test_no_color_that_is_empty_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[1m" in shown(monkeypatch, lambda screen: screen.heading("Layers"), NO_COLOR="")
