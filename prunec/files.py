"""Files on disk: checks before the work, atomic writes after it, and the names inside a run folder.

Owns the promise that no input is overwritten, no output is replaced unasked and no half-written file is
ever left under its final name. Of what is in files it only knows kinds that people give for ONNX models.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.errors import BadInput, WriteFailed

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ASIDE = re.compile(r"\..*\.[0-9a-f]{12}\.tmp(\..*)?", re.DOTALL)
"""The names that ``_aside`` makes."""


def check_output(path: str | Path, *, force: bool = False, inputs: Iterable[str | Path] = ()) -> Path:
    """Return ``path`` once it is known that a file can be written there, before any work is done.

    Args:
        path: the file that will be written.
        force: an existing file may be replaced.
        inputs: files that must not be replaced, whatever ``force`` says.

    Raises:
        BadInput: the path is an input, exists, is not a file, or lies in a folder that is not there or not writable.
    """
    path = Path(path)
    for given in inputs:
        if same_file(path, Path(given)):
            raise BadInput(
                f"the output {path} is the input",
                why="prunec never overwrites its input",
                do="give another output path",
            )
    if path.is_dir():
        raise BadInput(f"the output {path} is a folder", do="give a file name")
    if path.exists() and not path.is_file():
        raise BadInput(f"the output {path} is not a regular file", do="give the path of a file")
    if path.exists() and not force:
        raise BadInput(f"the output {path} is already there", do="give another path, or --force to replace it")
    check_folder(path.resolve().parent)
    return path


def check_name(path: str | Path) -> None:
    """Find out whether ONNX and ONNX Runtime, which take UTF-8 only, can open a file of this name.

    Raises:
        BadInput: the name, or that of a folder that it lies in, is not UTF-8.
    """
    try:
        os.path.realpath(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"the name {path} is not UTF-8",
            why="ONNX and ONNX Runtime cannot open files of such names",
            do="rename the file, or the folder that it lies in",
        ) from error


def check_folder(folder: str | Path) -> None:
    """Find out by writing whether files can be made in ``folder``.

    Raises:
        BadInput: it is missing, not a folder, read-only or full.
    """
    folder = Path(folder)
    if not folder.exists():
        raise BadInput(f"there is no folder {folder}", do="make it, or give another path")
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", do="give a path inside a folder")
    # Permission bits do not tell the whole story (root, read-only mounts, quotas): try it.
    probe = _aside(folder / "probe")
    try:
        with open(probe, "xb") as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise BadInput(
            f"cannot write in the folder {folder}",
            why=error.strerror or str(error),
            do="give a folder you can write to",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends well, the file takes its final name in one step.

    The file is written in the same folder and flushed to disk before it is renamed, so ``path`` is at
    every moment absent, the old file or the whole new one. When the block raises, nothing remains.
    A symbolic link keeps pointing where it points: its target is replaced.

    Raises:
        WriteFailed: the disk is full, over quota or read-only.
    """
    final = Path(os.path.realpath(path))
    aside = _aside(final)
    try:
        yield aside
        _flush(aside)
        os.replace(aside, final)
        _flush(final.parent)
    except Exception as error:
        reason = disk_reason(error)
        if reason:
            raise write_failed(final, reason) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()


def write_failed(path: Path, reason: str) -> WriteFailed:
    """Return the error of a disk that took no more; what was there before is as it was."""
    return WriteFailed(f"cannot write {path}", why=reason, do="free some space, or give a folder on another disk")


def disk_reason(error: BaseException) -> str:
    """Return what the system says if ``error`` comes from a disk that takes no more, else "".

    Libraries hide it: torch.save raises a RuntimeError in its place, safetensors has only the text.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    numbers = (number for number in _DISK_ERRORS if f"(os error {number})" in str(error))
    return next((os.strerror(number) for number in numbers), "")


def append_line(path: Path, line: str) -> None:
    """Append one line in one write, so that no reader sees half of it; a write that fails leaves nothing.

    Raises:
        WriteFailed: the disk is full, over quota or read-only.
    """
    data = line.encode("utf-8")
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(end)
            raise write_failed(path, error.strerror or str(error)) from error


def check_space(folder: Path, needed: int, what: str) -> None:
    """Find out whether ``needed`` bytes fit on the disk of ``folder``, which exists.

    Raises:
        WriteFailed: they do not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WriteFailed(
            f"{folder} has {free / 2**20:,.0f} MiB free, {what} needs about {needed / 2**20:,.0f} MiB",
            why="a full disk would be found only when the work is done",
            do="free some space, or give a folder on another disk",
        )


def is_aside(path: Path) -> bool:
    """Tell whether ``path`` has the name of a file that was being written when its process was killed."""
    return _ASIDE.fullmatch(path.name) is not None


def clear_asides(folder: Path) -> None:
    """Remove what killed processes left half-written in ``folder``."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_aside(path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8; bytes of file names that are not are escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, document: Any) -> None:
    """Write ``document`` to ``path`` atomically, as indented JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The names inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def weights(self) -> Path:
        return self.path / "pruned.safetensors"

    @property
    def onnx(self) -> Path:
        return self.path / "pruned.onnx"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def pictures(self) -> Path:
        """A sheet of masks; segmentation runs have one."""
        return self.path / "masks.png"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        BadInput: it is missing, not readable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}", why=str(error)) from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON", why=str(error)) from error


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; a last line that was cut off is left out.

    Raises:
        BadInput: it cannot be read, or a line before the last is not a JSON object.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}", why=str(error)) from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # the run was killed while it wrote this line
            raise BadInput(f"{path}, line {number}, is not JSON", why=str(error)) from error
        if not isinstance(row, dict):
            raise BadInput(f"{path}, line {number}, is not a JSON object")
        rows.append(row)
    return rows


def _aside(path: Path) -> Path:
    """Return an unused name beside ``path`` that keeps its suffix (writers look at it)."""
    return path.with_name(f".{path.stem[:40]}.{os.urandom(6).hex()}.tmp{path.suffix}")


def same_file(a: Path, b: Path) -> bool:
    """Tell whether two paths are one file, there or not."""
    try:
        return a.samefile(b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def _flush(path: Path) -> None:
    """Ask the system to put a file or folder on disk; folders cannot be opened everywhere."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- files that are no ONNX models, given as such ---------------------------------------------------------

_TF2ONNX = "convert it: python -m tf2onnx.convert"

_STARTS = (
    (b"\x89HDF", "a Keras file (HDF5)", f"{_TF2ONNX} --keras {{path}} --output model.onnx"),
    (b"SQLite format", "a database", "give the path of an .onnx file"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the model", "run git lfs pull"),
)

_MODULE = (
    "give the network itself, package.module:factory, and this file as --weights; or export it with torch.onnx.export"
)


def kind_of(path: Path, start: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do with it, from its first bytes; None where nothing is known of it."""
    for magic, what, do in _STARTS:
        if start.startswith(magic):
            return what, do.format(path=path)
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model", f"{_TF2ONNX} --tflite {path} --output model.onnx"
    if path.suffix == ".safetensors":
        return "a file of weights (safetensors)", _MODULE
    if start.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        return _kind_of_archive(path)
    if start.startswith(b"\x80") and path.suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt"):
        return "a file of PyTorch's, in its older form", _MODULE
    return None


def _kind_of_archive(path: Path) -> tuple[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        do = "export the module that it was made from with torch.onnx.export, and give that file"
        return "a TorchScript archive", do
    if any(name.endswith("data.pkl") for name in names):
        return "a file of PyTorch's (torch.save)", _MODULE
    models = [name for name in names if name.lower().endswith(".onnx")]
    return "a zip archive", f"unpack it and give {models[0] if models else 'the .onnx file in it'}"


def kind_of_folder(path: Path) -> tuple[str, str]:
    """Return what a folder holds, and what to do."""
    if (path / "saved_model.pb").is_file():
        return "a SavedModel of TensorFlow", f"{_TF2ONNX} --saved-model {path} --output model.onnx"
    models = sorted(path.glob("*.onnx"))
    if models:
        return (
            f"a folder with {len(models)} .onnx file{'s' if len(models) > 1 else ''}",
            f"give one of them: {models[0]}",
        )
    return "a folder without an .onnx file", "give the path of an .onnx file"
