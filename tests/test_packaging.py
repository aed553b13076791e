"""The package as others get it: the wheel holds every folder, and platforms ask for the right runtime."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import prunec

ROOT = Path(__file__).parent.parent
FOLDERS = {"prunec": "prunec", "passes": "prunec/passes", "cli": "prunec/cli"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel, built from a copy: builds leave folders behind."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    (built,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_sdist_makes_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    source = Path(str(wheel.filename)).parent.parent
    code = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, timeout=120, check=True)
    (packed,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert unpacked.name == f"prunec-{prunec.__version__}"
    code = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", code], cwd=unpacked, capture_output=True, timeout=120, check=True)
    (again,) = (unpacked / "dist").glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(wheel.namelist())


def test_the_wheel_installs_into_an_empty_environment(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Without what it depends on, which takes minutes: the command is there, and so is every room."""
    pytest.importorskip("pip")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    done = subprocess.run([*install, str(wheel.filename)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    code = "import prunec, prunec.passes, prunec.cli, prunec.toolchain as t; print(prunec.__version__, t.__file__)"
    done = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    version, place = done.stdout.split()
    assert version == prunec.__version__
    assert place.startswith(str(tmp_path))
    assert (tmp_path / "env" / "bin" / "prunec").is_file()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _sources() -> set[str]:
    """Return every source file under the name that it is installed as."""
    return {
        f"{package}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for file in (ROOT / folder).rglob("*.py")
    }


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == _sources() | {"prunec/py.typed"}


def test_the_wheel_brings_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "prunec = prunec.cli.main:run" in wheel.read(entry).decode()


def test_the_wheel_runs_from_a_folder_of_its_own(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import site, sys; site.main()\n"
        # The editable install's finder must not answer for the folder.
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import prunec.passes.channels, prunec.training.run.run, prunec.api, prunec.backends.fx.backend\n"
        "from prunec.cli.main import execute\n"
        f"assert prunec.__file__.startswith({str(tmp_path)!r}), prunec.__file__\n"
        f"assert prunec.passes.__file__.startswith({str(tmp_path)!r}), prunec.passes.__file__\n"
        "sys.exit(execute(['--version']))\n"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout.strip()) == (0, f"prunec, version {prunec.__version__}"), result.stderr


def test_no_package_is_installed_outside_prunec(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == {"prunec"}


def test_every_package_folder_says_what_it_is() -> None:
    folders = {file.parent for name in FOLDERS for file in (ROOT / name).rglob("*.py")}
    for folder in folders:
        init = folder / "__init__.py"
        assert init.is_file(), f"{folder} lacks __init__.py"
        assert init.read_text(encoding="utf-8").startswith('"""'), f"{init} lacks a docstring"


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
    ],
)
def test_each_platform_asks_for_one_onnx_runtime(
    project: Mapping[str, Any], system: str, machine: str, wanted: str
) -> None:
    environment = {"sys_platform": system, "platform_machine": machine}
    requirements = [Requirement(text) for text in project["project"]["dependencies"]]
    asked = [
        requirement.name
        for requirement in requirements
        if requirement.name.startswith("onnxruntime")
        and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]
    assert asked == [wanted]


def test_constraints_pin_every_direct_dependency_and_fit_the_ranges(project: Mapping[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {_normal(Requirement(line).name): Requirement(line) for line in lines if line and not line.startswith("#")}
    texts = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        texts += extra
    for requirement in map(Requirement, texts):
        if requirement.name in {"prunec", "onnxruntime"}:
            continue
        pin = pins.get(_normal(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned"
        (version,) = (specifier.version for specifier in pin.specifier if specifier.operator == "==")
        assert version in requirement.specifier, f"{pin} does not fit {requirement}"
    assert str(pins["torch"].specifier) == "==2.13.0"


def test_the_public_names_can_be_imported_and_are_few() -> None:
    assert len(prunec.__all__) <= 16
    for name in prunec.__all__:
        assert getattr(prunec, name) is not None
    assert set(prunec.__all__) <= set(dir(prunec))
    with pytest.raises(AttributeError, match="nothing"):
        _ = prunec.nothing


def test_importing_prunec_loads_nothing_heavy() -> None:
    code = "import sys, prunec; print(sorted({'torch', 'numpy', 'onnx', 'scipy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_modules_that_handle_files_do_not_load_torch() -> None:
    """What ``prunec analyze model.onnx`` and ``prunec validate`` stand on."""
    names = ["api", "cli.main", "check.validate", "data.observing", "passes.channels"]
    names += [
        "pipeline.apply_onnx",
        "pipeline.evidence",
        "pipeline.export",
        "lookup.resolve",
        "report.analysis_page",
        "report.run_page",
    ]
    code = f"import sys, {', '.join(f'prunec.{name}' for name in names)}; sys.exit('torch' in sys.modules and 99)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def _file(installed: str) -> Path:
    """Return where a file lies here that is installed as ``installed``."""
    for folder, package in sorted(FOLDERS.items(), key=lambda item: -len(item[1])):
        if installed.startswith(package + "/"):
            return ROOT / folder / installed.removeprefix(package + "/")
    raise AssertionError(installed)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
