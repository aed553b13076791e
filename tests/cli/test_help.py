"""Help and version: every command and option has a sentence, and nothing heavy is loaded for it."""

from __future__ import annotations

import re

import pytest
from command_line import Run, python

from prunec.cli.main import main


def test_help_lists_every_command_with_a_whole_sentence(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for command in main.commands:
        assert re.search(rf"^  {command} +[A-Z].*\.$", out, re.MULTILINE), command
    assert "..." not in out.partition("Commands:")[2]


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_and_every_option_a_sentence(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "--debug" in out
    options = [parameter for parameter in main.commands[command].params if parameter.param_type_name == "option"]
    assert all(getattr(option, "help", None) for option in options)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import resource, sys\n"
        "from prunec.cli.main import execute\n"
        "execute(['--help'])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'scipy', 'rich', 'networkx'} & set(sys.modules)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(sorted(heavy), used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    # CPU time, and the best of three: other work on the machine does not count.
    results = [python(code).stderr.rpartition(" ") for _ in range(3)]
    assert {heavy for heavy, _, _ in results} == {"[]"}
    assert min(float(seconds) for _, _, seconds in results) < 0.5


def test_the_version_is_the_packages(run: Run) -> None:
    from prunec import __version__

    assert run("--version")[1].strip() == f"prunec, version {__version__}"
