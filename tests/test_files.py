"""Files: nothing is overwritten unasked, and nothing half-written is ever left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prunec.errors import BadInput
from prunec.files import check_folder, check_output, read_json, read_lines, replacing, write_json, write_text


def test_a_written_file_has_the_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "é\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half-way"), replacing(target) as aside:
        aside.write_bytes(b"new, but not all of")
        raise RuntimeError("half-way")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_the_final_name_holds_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with replacing(target) as aside:
        aside.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


def test_the_aside_file_keeps_the_suffix_that_writers_look_at(tmp_path: Path) -> None:
    with replacing(tmp_path / "model.onnx") as aside:
        assert aside.suffix == ".onnx"
        aside.write_bytes(b"")


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_new_file_has_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "")
    (tmp_path / "b.txt").write_text("")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_json_with_a_nan_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"")
    with pytest.raises(BadInput, match="already there"):
        check_output(tmp_path / "out.onnx")
    assert check_output(tmp_path / "out.onnx", force=True) == tmp_path / "out.onnx"


def test_the_input_is_never_an_output_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(b"")
    (tmp_path / "alias.onnx").symlink_to(tmp_path / "in.onnx")
    for name in ("in.onnx", "alias.onnx", "../" + tmp_path.name + "/in.onnx"):
        with pytest.raises(BadInput, match="is the input"):
            check_output(tmp_path / name, force=True, inputs=[tmp_path / "in.onnx"])


def test_a_hard_link_to_the_input_is_the_input(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(b"x")
    os.link(tmp_path / "in.onnx", tmp_path / "twin.onnx")
    with pytest.raises(BadInput, match="is the input"):
        check_output(tmp_path / "twin.onnx", force=True, inputs=[tmp_path / "in.onnx"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing/out.onnx", "there is no folder"), ("", "is a folder"), ("file/out.onnx", "not a folder")],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=message):
        check_output(tmp_path / name)


def test_a_device_is_not_an_output() -> None:
    with pytest.raises(BadInput, match="not a regular file"):
        check_output(os.devnull, force=True)


def test_a_read_only_folder_is_found_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, whom permission bits do not stop.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadInput) as caught:
        check_folder(tmp_path)
    assert str(caught.value) == (
        f"error[bad-input]: cannot write in the folder {tmp_path}\n"
        "  why: Permission denied\n"
        "  do:  give a folder you can write to"
    )


def test_the_check_of_a_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_log_whose_last_line_was_cut_off_is_read_up_to_it(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_log_damaged_in_the_middle_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n???\n{"step": 2}\n')
    with pytest.raises(BadInput, match="line 2"):
        read_lines(tmp_path / "m.jsonl")


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    document = {"a": [1, 2.5, None], "b": "é"}
    write_json(tmp_path / "a.json", document)
    assert read_json(tmp_path / "a.json") == document
    assert json.loads((tmp_path / "a.json").read_text()) == document


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_file_that_is_not_json_is_bad_input(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BadInput):
        read_json(tmp_path / "a.json")


def test_a_name_that_is_not_utf_8_is_escaped_in_a_text(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", os.fsdecode(b"run b\xe9d"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "run b\\udce9d"
