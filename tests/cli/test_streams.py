"""Pipes, closed streams, full devices, terminals without Unicode, and how a command leaves."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from command_line import NETWORKS, Run, python, shell

needs_pipes = pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no pipes of this kind here")


@needs_pipes
@pytest.mark.parametrize("command", ["presets --json", "presets"])
def test_a_reader_that_leaves_is_no_error_and_no_failed_check(command: str) -> None:
    # The reader has gone before anything is written.
    result = shell(f"prunec {command} | true; exit ${{PIPESTATUS[0]}}")
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 141)


@needs_pipes
def test_nobody_reads_an_error() -> None:
    assert shell("prunec analyze missing.onnx 2>&1 | true; exit ${PIPESTATUS[0]}").returncode == 141


@needs_pipes
def test_closed_streams_are_no_error() -> None:
    result = shell("prunec presets >&-")
    assert (result.stderr, result.returncode) == ("", 0)
    result = shell("prunec presets >&- 2>&- <&-")
    assert (result.stderr, result.returncode) == ("", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_output_that_finds_no_room_is_a_failed_write() -> None:
    result = shell("prunec presets > /dev/full")
    assert result.returncode == 2
    assert result.stderr.startswith("error[write-failed]: cannot write the output\n  why: No space left on device")


def test_a_terminal_without_a_character_gets_its_plain_spelling(tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS)
    line = f"cd '{tmp_path}' && prunec prune networks:with_inputs -o out.onnx"
    result = shell(line, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^parameters .* -\d+\.\d%$", result.stdout, re.MULTILINE)


def test_a_pipe_gets_no_colour(run: Run) -> None:
    assert "\x1b[" not in run("analyze", "networks:with_inputs")[1]


@pytest.mark.parametrize("arguments", [["presets"], ["--help"], ["analyze", "missing.onnx"]])
def test_a_command_leaves_python_no_garbage_to_look_for(arguments: list[str]) -> None:
    code = (
        "import atexit, gc, sys\n"
        "from prunec.cli.main import run\n"
        "atexit.register(lambda: print(len(gc.get_objects()) < gc.get_freeze_count() / 100, file=sys.stderr))\n"
        "sys.argv[0] = 'prunec'\n"
        "run()\n"
    )
    assert python(code, *arguments).stderr.splitlines()[-1] == "True"


def test_no_color_is_kept_on_a_terminal() -> None:
    code = (
        "import io, sys\n"
        "from prunec.cli import render\n"
        "class Terminal(io.StringIO):\n"
        "    def isatty(self): return True\n"
        "sys.stdout = shown = Terminal()\n"
        "render.console().print('x', style='red')\n"
        "sys.stderr.write(repr('\\x1b[31m' in shown.getvalue()))\n"
    )
    assert python(code, TERM="xterm-256color", NO_COLOR="1").stderr == "False"
    assert python(code, TERM="xterm-256color", NO_COLOR="").stderr == "True"


def test_square_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A model's name may hold what rich takes for markup."""
    from prunec.cli import render

    render.console().print("net[bold].onnx: 3 parameters")
    assert capsys.readouterr().out == "net[bold].onnx: 3 parameters\n"
