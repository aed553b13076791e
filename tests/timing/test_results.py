"""docs/results.md shows what the raw runs in benchmarks/results say, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from prunec.files import write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield _loaded()


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_table", ROOT / "benchmarks" / "results_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["results_table"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_rows_of_the_raw_runs_and_no_others(script: ModuleType) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    rows = script.table().splitlines()
    assert len(rows) > 3
    missing = [row for row in rows if row not in page]
    assert not missing, "put what `python benchmarks/results_table.py table` prints into the page"
    names = {f"| `{name}` |" for name in script.ROWS}
    shown = [line for line in page if any(line.startswith(name) for name in names)]
    assert sorted(shown) == sorted(row for row in rows if row.startswith("| `"))


def test_several_seeds_are_shown_as_mean_and_spread(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    for seed, after in enumerate((0.9, 0.91, 0.94)):
        (tmp_path / f"resnet20-50-default-2400-seed{seed}").mkdir()
        found = {"seed": seed, "macs": [200, 100], "params": [40, 10], "cpu_seconds": 120}
        found |= {"scores": {"removed": 0.5, "after": after}}
        write_json(tmp_path / f"resnet20-50-default-2400-seed{seed}" / "run.json", found)
    line = script.table().splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["`resnet20-50-default-2400`", "0, 1, 2", "50.0%", "25.0%"]
    assert cells[5:] == ["91.67% (90.00% to 94.00%)", "2 min"]
    assert script.plot().count("<circle") == 1


def test_the_raw_runs_stay_small() -> None:
    files = [path for path in (ROOT / "benchmarks" / "results").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5 << 20
