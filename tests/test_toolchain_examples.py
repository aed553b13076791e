"""examples/toolchains: each is run as its reader would (the network is trained once), and what it prints is read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "toolchains"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "digits")
OPTIONS = {"compile_and_export": ["--backend", "aot_eager"]}

DRIVER = """
import runpy, sys, traceback
sys.path.insert(0, {folder!r})
options = {options!r}
for name in {names!r}:
    print("=== " + name, flush=True)
    sys.argv = [name, *options.get(name, [])]
    try:
        runpy.run_path({folder!r} + "/" + name + ".py", run_name="__main__")
    except BaseException:
        traceback.print_exc(file=sys.stdout)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each example printed."""
    code = DRIVER.format(folder=str(FOLDER), options=OPTIONS, names=EXAMPLES)
    command = [sys.executable, "-W", "ignore", "-c", code]
    folder = tmp_path_factory.mktemp("examples")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^=== (\w+)\n", done.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def figures(pattern: str, text: str) -> list[tuple[str, ...]]:
    found = re.findall(pattern, text)
    assert found, text
    return [item if isinstance(item, tuple) else (item,) for item in found]


def small(text: str) -> None:
    """Every difference that an example prints is rounding."""
    assert all(float(value) < 1e-3 for (value,) in figures(r"difference[^\n]*?(\d\.\d+e[+-]\d+|0\.0e\+00)", text))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_says_how(name: str, printed: dict[str, str]) -> None:
    assert "Traceback" not in printed[name], printed[name]
    assert printed[name].strip()
    assert f"examples/toolchains/{name}.py" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")


def test_each_kind_in_memory_gets_smaller(printed: dict[str, str]) -> None:
    lines = figures(r"(\w+) +([\d,]+) -> ([\d,]+) parameters", printed["in_memory"])
    assert {kind for kind, _, _ in lines} == {"ModelProto", "Model", "Graph"}
    assert all(int(after.replace(",", "")) < int(before.replace(",", "")) for _, before, after in lines)
    small(printed["in_memory"])


@pytest.mark.parametrize(
    "name", ["fx_pass_manager", "exported_program", "onnxscript_pipeline", "compile_and_export", "onnxslim_too"]
)
def test_no_function_is_lost(name: str, printed: dict[str, str]) -> None:
    if printed[name].startswith("skipped"):
        pytest.skip(printed[name])
    small(printed[name])


def test_quantisation_agrees_as_well_after_pruning(printed: dict[str, str]) -> None:
    lines = figures(r"(\S.*?) +([\d,]+) bytes +accuracy ([\d.]+)% +agrees on ([\d.]+)%", printed["quantise_after"])
    size = {name: int(count.replace(",", "")) for name, count, _, _ in lines}
    agrees = {name: float(share) for name, _, _, share in lines}
    assert size["pruned"] < size["as it was"]
    assert size["pruned, int8"] < size["as it was, int8"]
    assert agrees["pruned"] == 100
    assert agrees["pruned, int8"] > agrees["as it was, int8"] - 3


def test_widths_suit_tensor_cores(printed: dict[str, str]) -> None:
    lines = figures(r"(\w+): widths \[([\d, ]+)\], multiples of (\d+)", printed["tensorrt"])
    assert [(precision, multiple) for precision, _, multiple in lines] == [("fp16", "8"), ("int8", "32")]
    for _, widths, multiple in lines:
        assert all(int(width) % int(multiple) == 0 for width in widths.split(","))
    assert printed["tensorrt"].count("trtexec --onnx=") == 2


def test_the_graph_answers_which_layers_are_free_of_the_head(printed: dict[str, str]) -> None:
    answers = dict(figures(r"(\w+): (yes|no|it touches)", printed["which_layers"]))
    assert answers == {"conv1": "yes", "conv2": "yes", "conv3": "it touches", "head": "no"}


def test_olive(printed: dict[str, str]) -> None:
    if printed["olive_workflow"].startswith("skipped"):
        pytest.skip(printed["olive_workflow"])
    small(printed["olive_workflow"])
