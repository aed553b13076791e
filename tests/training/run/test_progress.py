"""What a run shows while it goes on."""

from __future__ import annotations

import io
from typing import Any

import pytest

from prunec.training.logs.progress import Bar, Lines, Progress, Silent, describe, for_stream

ISTA_ROW = {"step": 40, "loss": 0.5, "accuracy": 0.9, "sparsity": 0.25, "lasso": 1.5, "params_if_pruned": 600}
FINETUNE_ROW = {"step": 80, "loss": 0.1, "accuracy": 0.95, "sparsity": None, "lasso": None, "params_if_pruned": 600}


def play(progress: Progress) -> None:
    progress.phase("ista", 100, 20)
    progress.step(21)
    progress.row(ISTA_ROW, 1000)
    progress.note("advice: lower rho [not markup]")
    progress.close()


def test_a_row_shows_loss_accuracy_sparsity_lasso_and_the_size_if_pruned_now() -> None:
    text = describe(ISTA_ROW, 1000)
    for part in ("loss 0.500", "accuracy 90.0%", "sparsity 25.0%", "lasso 1.5", "size 60.0%"):
        assert part in text


def test_fine_tuning_has_no_sparsity_to_show() -> None:
    assert describe(FINETUNE_ROW, 1000) == "loss 0.100  accuracy 95.0%  size 60.0%"


def test_lines_tell_phases_rows_and_notes() -> None:
    stream = io.StringIO()
    play(Lines(stream))
    assert stream.getvalue().splitlines()[0] == "ISTA: 100 steps, from step 20"
    assert "step     40  loss 0.500" in stream.getvalue()
    assert "[not markup]" in stream.getvalue()


def test_the_bar_draws_on_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    play(Bar())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[not markup]" in captured.err


def test_nothing_is_shown_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    play(Silent())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, Bar), (False, Lines)])
def test_a_bar_is_for_terminals(is_terminal: bool, kind: type[Any]) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    progress = for_stream(Stream())
    progress.close()
    assert isinstance(progress, kind)
