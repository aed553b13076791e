"""The command line's promises: exit statuses, one message per error, JSON alone on stdout, nothing overwritten."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx_models.conv import save_conv

from prunec import api, errors
from prunec.cli.main import execute, main
from prunec.lookup.libraries import import_torchvision

NETWORKS = """
import torch
from torch import nn


class Half(nn.Module):
    '''Half of its inner channels are constant.'''

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            self.norm.weight[::2] = 0
            self.norm.bias.normal_()

    def forward(self, image):
        return self.conv2(self.norm(self.conv1(image)).relu())


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def with_inputs():
    return Half(), torch.zeros(1, 3, 9, 7)


class AsksValues(Half):
    def forward(self, x):
        y = super().forward(x)
        return y + 1 if int(torch.tensor([y.shape[1]]).sum()) > 100 else y


def asks_values():
    return AsksValues(), torch.zeros(1, 3, 9, 7)


def fails():
    raise ValueError("no such thing as [brackets]")


def exits():
    raise SystemExit(3)


def number():
    return 3
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a fresh folder that holds ``networks.py``; return status, stdout, stderr."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    # Each test has its own networks.py, under the same name.
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def execute_and_read(*arguments: object) -> tuple[int, str, str]:
        status = execute([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return execute_and_read


def assert_one_message(err: str) -> None:
    assert err.startswith(("error[", "Usage:", "internal error"))
    assert "Traceback" not in err
    assert err.count("error[") <= 1


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


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


def test_validate_does_not_load_torch(conv_file: Path) -> None:
    code = (
        "import sys\nfrom prunec.cli.main import execute\n"
        "status = execute(['validate', sys.argv[1], sys.argv[1], '--provider', 'cpu', '--runs', '1'])\n"
        "sys.exit(status or ('torch' in sys.modules and 99))\n"
    )
    assert python(code, str(conv_file)).returncode == 0


def test_validate_of_equal_files_succeeds(run: Run, conv_file: Path) -> None:
    status, out, _ = run("validate", conv_file, conv_file, "--runs", 2)
    assert status == 0
    assert "agrees with A" in out
    assert "latency on cpu" in out


def test_validate_of_different_files_prints_the_errors_and_exits_1(run: Run, conv_file: Path, tmp_path: Path) -> None:
    other = save_conv(tmp_path / "other.onnx", scale=1.1)
    status, out, err = run("validate", conv_file, other, "--json", "--runs", 0)
    assert status == 1
    assert json.loads(out)["max_rel_error"] == pytest.approx(0.1, rel=1e-3)
    assert json.loads(out)["passed"] is False
    assert "\nerror[validation-failed]: the outputs differ by 0.1 (relative)" in f"\n{err}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "missing.onnx"], "there is no file missing.onnx"),
        (["analyze", "resnet21"], "did you mean resnet"),
        (["analyze", "networks:Half"], "the input shape of networks:Half is not known"),
        (["analyze", "networks:Hal"], "did you mean Half"),
        (["analyze", "nowhere:Half"], "cannot import 'nowhere'"),
        (["analyze", "networks:fails"], "ValueError: no such thing as [brackets]"),
        (["analyze", "networks:exits"], "networks:exits failed\n  why: SystemExit: 3"),
        (["analyze", "networks:number"], "gives a int, not a torch.nn.Module"),
        (["analyze", "networks:Half", "--input-shape", "banana"], "'banana' is not an input shape"),
        (["analyze", "networks:Half", "--input-shape", "x:1x3x0x8"], "is not an input shape"),
        (["analyze", "networks:Half", "--input-shape", "x:1x3x8x8"], "the model has no input 'x'"),
        (["analyze", "networks:Half", "--input-shape", "1x4x8x8"], "1x4x8x8"),
        (["analyze", "networks:Branches", "--input-shape", "1x4x8x8"], "error[untraceable-model]"),
        (["analyze", "digits", "--weights", "missing.pt"], "there is no file missing.pt"),
        (
            ["analyze", "digits", "--weights", "networks.py"],
            "cannot read the weights networks.py\n  why: it is not what",
        ),
        (["prune", "digits", "-o", "no/where.onnx"], "there is no folder"),
        (["prune", "digits", "-o", "networks.py"], "is already there"),
        (["prune", "digits", "-o", "a.onnx", "--criterion", "l1"], "budget"),
        (["prune", "digits", "-o", "a.onnx", "--target-macs", "2"], "--target-macs"),
        (["prune", "digits", "-o", "a.onnx", "--plan", "a.onnx"], "--plan and --output are both a.onnx"),
        (["validate", "a.onnx", "b.onnx"], "there is no file a.onnx"),
        (["validate", "networks.py", "networks.py"], "networks.py is not an ONNX model"),
        (["report", "missing"], "there is no folder missing"),
        (["report", "."], "is not a run folder"),
        (["train-prune", "-o", "r", "--preset", "nothing"], "there is no preset called 'nothing'"),
        (["train-prune", "-o", "r", "--arch", "digits", "--model", "networks:Half"], "--arch, --model and --onnx"),
        (["train-prune", "-o", "r", "--model", "x.onnx"], "--model x.onnx is an ONNX file"),
        (["train-prune", "-o", "r", "--arch", "nets/x.ONNX", "--data", "d"], "give it with --onnx nets/x.ONNX"),
        (
            ["train-prune", "-o", "r", "--onnx", "networks:Half", "--data", "d"],
            "given with --arch, your own network with --model",
        ),
        (["train-prune", "-o", "r", "--onnx", "resnet20", "--data", "d"], "is not an .onnx file"),
        (["train-prune", "-o", "r", "--arch", "digits", "--data", "missing"], "there is no data set 'missing'"),
        (["prune"], "Missing argument"),
        (["prune", "digits"], "Missing option"),
        (["frobnicate"], "No such command"),
        (["analyze", "digits", "--frobnicate"], "No such option"),
    ],
)
def test_bad_usage_is_one_message_on_stderr_and_exit_2(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert_one_message(err)
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__")
    assert left == before


def test_analyze_shows_constants_groups_and_pins(run: Run) -> None:
    status, out, _ = run("analyze", "networks:Half", "--input-shape", "1x3x8x8")
    assert status == 0
    for shown in ("conv1", "4 constant", "Coupled groups", "Pinned", "532 parameters"):
        assert shown in out


def test_analyze_json_is_one_document_and_nothing_else(run: Run) -> None:
    status, out, _ = run("analyze", "networks:with_inputs", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["model"] == "networks:with_inputs"
    assert document["channels"]["constant"] == 4
    assert document["params"] == 532


def test_a_factory_may_be_given_by_file(run: Run) -> None:
    assert json.loads(run("analyze", "networks.py:with_inputs", "--json")[1])["params"] == 532


def test_analyze_writes_a_page_and_does_not_replace_one(run: Run, tmp_path: Path) -> None:
    arguments = ("analyze", "networks:with_inputs", "--report", "page.html")
    assert run(*arguments)[0] == 0
    assert "networks:with_inputs" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert run(*arguments)[0] == 2
    assert run(*arguments, "--force")[0] == 0


def test_prune_writes_a_smaller_file_that_computes_the_same(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("prune", "networks:with_inputs", "-o", "out.onnx", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["exact"] is True
    assert document["removed_channels"] == 3
    assert document["after"]["params"] < document["before"]["params"]
    assert document["validation"]["passed"] is True
    assert document["validation"]["max_rel_error"] < 1e-5
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["image"]
    assert max(weight.dims[0] for weight in model.graph.initializer if len(weight.dims) == 4) == 5


def test_prune_in_bias_mode_says_how_far_off_the_border_is(run: Run) -> None:
    document = json.loads(run("prune", "networks:with_inputs", "-o", "out.onnx", "--border", "bias", "--json")[1])
    assert document["removed_channels"] == 4
    assert document["exact"] is False
    assert document["border_error"] > 1e-3


def test_a_prune_that_removes_nothing_says_so(run: Run) -> None:
    status, out, _ = run("prune", "networks:with_inputs", "-o", "out.onnx", "--keep", "*")
    assert status == 0
    assert "nothing was removed" in out
    assert "removed 0 channels" in out


def test_prune_to_a_budget_keeps_it(run: Run) -> None:
    status, out, _ = run("prune", "digits", "-o", "o.onnx", "--criterion", "l1", "--target-macs", "0.5", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["after"]["macs"] <= 0.5 * document["before"]["macs"]
    assert document["exact"] is False


def test_a_budget_that_cannot_be_met_exits_1_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    status, out, err = run("prune", "digits", "-o", "o.onnx", "--criterion", "l1", "--target-macs", "0.000001")
    assert (status, out) == (1, "")
    assert_one_message(err)
    assert not (tmp_path / "o.onnx").exists()


def test_a_failed_check_writes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exported file is another network: the check finds it, and it never gets its name."""
    from prunec.pipeline import export

    right = export.export_onnx

    def wrong(module: object, example_inputs: object, path: Path, **options: object) -> None:
        from networks import Half  # type: ignore[import-not-found]  # written by the fixture

        other = Half()
        other.conv2.bias.data += 1
        right(other, example_inputs, path, **options)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(export, "export_onnx", wrong)
    status, out, err = run("prune", "networks:with_inputs", "-o", "out.onnx")
    assert (status, out) == (1, "")
    assert err.startswith("error[validation-failed]")
    assert not [path for path in tmp_path.iterdir() if "onnx" in path.name]


def test_archs_and_presets_are_listed(run: Run) -> None:
    assert "resnet20" in run("archs")[1]
    assert {"digits", "convnet", "resnet20"} <= {item["name"] for item in json.loads(run("archs", "--json")[1])}
    assert "digits" in run("presets")[1]
    assert {"digits"} <= {item["name"] for item in json.loads(run("presets", "--json")[1])}


def test_doctor_says_what_really_works(run: Run) -> None:
    document = json.loads(run("doctor", "--json")[1])
    assert document["packages"]["torch"]
    works = {provider["name"]: provider["works"] for provider in document["providers"]}
    assert works["cpu"] is True
    assert works["cuda"] is (document["cuda_devices"] > 0)
    assert "ONNX Runtime provider" in run("doctor")[1]


def test_debug_tells_what_each_tracer_made_of_a_network(run: Run) -> None:
    status, out, err = run("--debug", "analyze", "networks:asks_values")
    assert status == 0
    assert "torch.fx cannot trace the network" in err
    assert "torch.export is tried" in err
    assert "note: the network was read by torch.export, for torch.fx could not" in " ".join((out + err).split())


def test_debug_shows_the_traceback_before_or_after_the_command(run: Run) -> None:
    for arguments in (["--debug", "analyze", "networks:fails"], ["analyze", "networks:fails", "--debug"]):
        status, _, err = run(*arguments)
        assert status == 2
        assert "Traceback" in err
        assert err.count("error[bad-input]") >= 1


def test_an_unexpected_exception_is_an_internal_error_with_status_70(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("division by zero\nsecond line")

    monkeypatch.setattr(api, "analyze_module", broken)
    status, out, err = run("analyze", "digits")
    assert (status, out) == (70, "")
    assert err == (
        "internal error: ZeroDivisionError: division by zero\n"
        "  why: this is a fault of prunec, not of your input\n"
        "  do:  run again with --debug and report the message with the model\n"
    )


def test_an_internal_error_names_its_stage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise errors.InternalError("channels", "two classes overlap", "> y = conv(x)")

    monkeypatch.setattr(api, "analyze_module", broken)
    assert run("analyze", "digits")[0::2] == (
        70,
        "internal error in channels: two classes overlap\n  do:  please report this with the model\n> y = conv(x)\n",
    )


def test_an_operating_system_error_names_the_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise IsADirectoryError(21, "Is a directory", "out.onnx")

    monkeypatch.setattr(api, "analyze_module", broken)
    assert run("analyze", "digits")[0::2] == (2, "error[bad-input]: out.onnx: Is a directory\n")


def test_an_interrupt_exits_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "analyze_module", interrupted)
    assert run("analyze", "digits") == (130, "", "\ninterrupted\n")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``prunec`` is this prunec; its exit status is that of the last command to fail."""
    script = f"set -o pipefail; prunec() {{ '{sys.executable}' -m prunec \"$@\"; }}; {command}"
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


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


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_files_whose_names_are_not_utf_8_are_refused_by_name(run: Run, conv_file: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"b\xe9d.onnx")
    odd.write_bytes(conv_file.read_bytes())
    for arguments in (
        ["analyze", odd],
        ["validate", odd, conv_file],
        ["validate", conv_file, odd],
        ["prune", conv_file, "-o", odd.with_stem("x" + odd.stem)],
        ["train-prune", "-o", odd.with_suffix("")],
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert re.match(r"error\[bad-input\]: the name .*b.+d(\.onnx)? is not UTF-8\n", err)
        assert_one_message(err)


def test_sizes_that_a_file_leaves_open_are_told_beside_its_macs(run: Run, conv_file: Path) -> None:
    note = "open sizes count as 1 in MACs and activations: give --input-shape for input x (?x3x?x?)"
    assert run("analyze", conv_file)[2] == f"note: {note}\n"
    assert json.loads(run("analyze", conv_file, "--json")[1])["notes"] == [note]
    assert f"note: {note}\n" in run("prune", conv_file, "-o", "out.onnx")[2]
    assert run("analyze", conv_file, "--input-shape", "1x3x8x8")[2] == ""


def test_a_pipe_gets_no_colour(run: Run) -> None:
    assert "\x1b[" not in run("analyze", "networks:with_inputs")[1]


def test_no_color_is_kept_on_a_terminal() -> None:
    code = (
        "import io, sys\n"
        "from prunec.cli import render\n"
        "class Terminal(io.StringIO):\n"
        "    def isatty(self): return True\n"
        "sys.stdout = shown = Terminal()\n"
        "render.console().print('[red]x[/red]')\n"
        "sys.stderr.write(repr('\\x1b[31m' in shown.getvalue()))\n"
    )
    assert python(code, TERM="xterm-256color", NO_COLOR="1").stderr == "False"
    assert python(code, TERM="xterm-256color", NO_COLOR="").stderr == "True"


@pytest.mark.parametrize(
    "kind",
    sorted(
        (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PrunecError)),
        key=str,
    ),
)
def test_every_error_renders_what_why_and_do(kind: type[errors.PrunecError]) -> None:
    assert str(kind("it is wrong", why="a cause", do="change it")) == (
        f"error[{kind.code}]: it is wrong\n  why: a cause\n  do:  change it"
    )
    assert str(kind("it is wrong")) == f"error[{kind.code}]: it is wrong"
    assert kind.exit_status == (1 if issubclass(kind, errors.CheckFailed) else 2)


def test_every_error_code_has_a_heading_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PrunecError)]
    codes = {kind.code for kind in kinds} - {errors.PrunecError.code}
    assert codes <= set(re.findall(r"^### (\S+)$", text, re.MULTILINE))
    assert len(codes) == len(kinds) - 1


@pytest.fixture
def half_file(run: Run, tmp_path: Path) -> Path:
    """An ONNX file with constant channels, as PyTorch exports it: BatchNorm kept, batch open."""
    assert run("prune", "networks:with_inputs", "-o", "half.onnx", "--keep", "*")[0] == 0
    return tmp_path / "half.onnx"


def test_analyze_of_a_file_loads_neither_torch_nor_scipy(conv_file: Path) -> None:
    """Each takes longer than the analysis of most files."""
    code = (
        "import sys\nfrom prunec.cli.main import execute\n"
        "status = execute(['analyze', sys.argv[1], '--json'])\n"
        "sys.exit(status or (not {'torch', 'scipy'}.isdisjoint(sys.modules) and 99))\n"
    )
    result = python(code, str(conv_file))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["frontend"] == "onnx"


def test_a_file_is_pruned_into_a_smaller_file_with_the_same_interface(
    run: Run, half_file: Path, tmp_path: Path
) -> None:
    status, out, _ = run("prune", half_file, "-o", "out.onnx", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["removed_channels"] == 3
    assert document["validation"]["max_rel_error"] < 1e-5
    before, after = onnx.load(half_file), onnx.load(tmp_path / "out.onnx")
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert (tmp_path / "out.onnx").stat().st_size < half_file.stat().st_size


def test_a_file_is_timed_against_the_original_where_something_was_removed(run: Run, half_file: Path) -> None:
    for keep, is_timed in (((), True), (("--keep", "*"), False)):
        validation = json.loads(run("prune", half_file, "-o", "out.onnx", "--force", "--json", *keep)[1])["validation"]
        assert validation["passed"]
        assert (validation["latency_a_ms"] is not None) == is_timed


def test_the_input_file_is_never_overwritten(run: Run, half_file: Path) -> None:
    before = half_file.read_bytes()
    status, _, err = run("prune", half_file, "-o", half_file, "--force")
    assert status == 2
    assert "is the input" in err
    assert half_file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07", b"\x00" * 100])
def test_a_file_that_is_no_model_is_one_message(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    for arguments in (["analyze", "x.onnx"], ["prune", "x.onnx", "-o", "y.onnx"], ["validate", "x.onnx", "x.onnx"]):
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), err
        assert "x.onnx" in err
        assert_one_message(err)
    assert not (tmp_path / "y.onnx").exists()


def test_a_short_training_run_leaves_a_whole_folder(run: Run, tmp_path: Path) -> None:
    status, out, err = run("train-prune", "--preset", "digits", "--steps", "12", "-o", "r", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document["validation"]["passed"] is True
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert {"pruned.onnx", "pruned.safetensors", "plan.json", "metrics.jsonl", "report.html", "config.json"} <= names
    assert run("train-prune", "--preset", "digits", "--steps", "12", "-o", "r")[0] == 2
    assert run("report", "r", "-o", "page.html")[0] == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.real
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_networks_of_other_libraries_are_found_by_name(run: Run, name: str) -> None:
    status, out, err = run("analyze", name, "--json")
    assert status == 0, err
    assert json.loads(out)["params"] == 11_689_512


@pytest.mark.real
def test_a_published_file_with_auxiliary_heads_loads_into_torchvisions_network(run: Run, tmp_path: Path) -> None:
    import_torchvision()
    published = importlib.import_module("torchvision.models").googlenet(weights=None, init_weights=False)
    assert "aux1.conv.conv.weight" in published.state_dict()
    torch.save(published.state_dict(), tmp_path / "googlenet.pth")
    options = ("--weights", "googlenet.pth", "--input-shape", "1x3x64x64", "--json")
    status, out, err = run("analyze", "torchvision:googlenet", *options)
    assert status == 0, err
    assert json.loads(out)["params"] == 6_624_904


@pytest.mark.real
@pytest.mark.parametrize("name", ["torchvision:googlenet", "timm:test_resnet.r160_in1k"])
def test_a_network_of_another_library_is_trained_and_pruned(run: Run, name: str) -> None:
    options = ("--steps", 4, "--batch-size", 4, "--input-shape", "1x3x64x64", "--device", "cpu")
    status, out, err = run("train-prune", "--arch", name, *options, "-o", "run")
    assert status == 0, err
    assert "agrees with the trained network" in out


@pytest.mark.real
def test_timms_weight_tags_are_names_too(run: Run) -> None:
    status, out, err = run("analyze", "timm:resnet18.a1_in1k", "--json")
    assert status == 0, err
    assert json.loads(out)["model"] == "timm:resnet18.a1_in1k"


@pytest.mark.real
@pytest.mark.parametrize("name", ["torchvision:resnet81", "timm:resnet81"])
def test_an_unknown_name_of_a_library_is_told_with_its_neighbours(run: Run, name: str) -> None:
    status, out, err = run("analyze", name)
    assert (status, out) == (2, "")
    assert "did you mean resnet" in err


def test_a_library_that_is_not_installed_is_told_with_the_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err = run("analyze", "timm:resnet18")
    assert (status, err) == (
        2,
        "error[missing-dependency]: timm is not installed\n  do:  pip install 'prunec[real]'\n",
    )


def test_the_same_line_starts_a_run_and_goes_on_with_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job schedulers start the line again that they started first."""
    from prunec.training.run import run as training
    from prunec.training.settings.config import RunConfig

    begun: list[RunConfig] = []

    def begin(config: RunConfig, _: object) -> None:
        begun.append(config)
        (tmp_path / "r").mkdir(exist_ok=True)
        (tmp_path / "r" / "config.json").write_text(json.dumps(config.to_json_dict()))
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_prune", begin)
    line = (
        "train-prune", "-o", "r", "--resume", "--arch", "digits", "--preset", "digits", "--epochs", "3",
        "--rho", "0.01", "--batch-size", "16", "--shares", "0.3,0.4,0.3", "--keep", "head*", "--input-shape", "2x1x8x8",
        "--no-channels-last",
    )  # fmt: skip
    run(*line)
    run(*line)
    assert [config.resume for config in begun] == [False, True]
    assert begun[0].to_json() == begun[1].to_json()
    status, _, err = run(*line, "--seed", "7", "--keep", "tail")
    assert status == 2
    assert "seed 7 (the run has 0)" in err
    assert "keep head*,tail (the run has head*)" in err
    run("train-prune", "-o", "r", "--resume", "--lr", "0.5")
    assert begun[-1].lr == 0.5
