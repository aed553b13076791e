"""One message per error on stderr, and the exit status that goes with it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from command_line import Run, assert_one_message

from prunec import api, errors


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
        (["prune", "digits", "-o", "a.onnx", "--seed", "-1"], "--seed"),
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


def test_too_little_memory_is_no_fault_of_prunec(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise MemoryError("Unable to allocate 745. TiB")

    monkeypatch.setattr(api, "analyze_module", broken)
    status, _, err = run("analyze", "digits")
    assert status == 2
    assert "not enough memory: Unable to allocate 745. TiB\n  do:  give smaller inputs" in err
    assert_one_message(err)


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


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07", b"\x00" * 100])
def test_a_file_that_is_no_model_is_one_message(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    for arguments in (["analyze", "x.onnx"], ["prune", "x.onnx", "-o", "y.onnx"], ["validate", "x.onnx", "x.onnx"]):
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), err
        assert "x.onnx" in err
        assert_one_message(err)
    assert not (tmp_path / "y.onnx").exists()
