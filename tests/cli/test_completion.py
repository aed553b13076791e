"""Completion in the shell: the scripts that docs/cli.md installs, and what they are answered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = [sys.executable, "-c", "import sys; sys.argv[0] = 'prunec'; from prunec.cli.main import run; run()"]


def answer(words: str, **more: str) -> list[str]:
    count = len(words.split(" ")) - 1
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(count), "_PRUNEC_COMPLETE": "bash_complete", **more}
    done = subprocess.run(PROGRAM, env={**os.environ, **asked}, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("prunec ana", "plain,analyze"),
        ("prunec analyze --gra", "plain,--graph"),
        ("prunec prune m.onnx --criterion tay", "plain,taylor"),
        ("prunec analyze mod", "file,mod"),
    ],
)
def test_words_are_completed(words: str, expected: str) -> None:
    assert expected in answer(words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str) -> None:
    environment = {**os.environ, "_PRUNEC_COMPLETE": f"{shell}_source"}
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "_PRUNEC_COMPLETE" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)
