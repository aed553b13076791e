"""What is told of a pruned network on held-out samples: measures, labels, and that no fitted sample is among them."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from prunec.check.agreement import agreement, num_classes
from prunec.data.labelled import labels_of
from prunec.data.sample_files import read_samples
from prunec.data.samples import Samples, Slot
from prunec.errors import BadInput
from prunec.fitting import fit_data as fit_data_module
from prunec.fitting.fit_data import fit_data
from prunec.ir.arrays import Array
from prunec.runtime.probes import Feed

SLOT = Slot("x", (None, 3), "float32")


def samples(folder: Path, count: int = 12) -> Samples:
    for number in range(count):
        np.save(folder / f"{number:02}.npy", np.full((1, 3), number, np.float32))
    return read_samples(folder, [SLOT])


def test_no_sample_is_both_fitted_and_held_out(tmp_path: Path) -> None:
    found = fit_data(samples(tmp_path), lambda feed: feed)
    fitted, held = ([int(v) for feed in part for v in feed["x"][:, 0]] for part in (found.fitted, found.held_out))
    assert held == [3, 7, 11] == list(found.rows_held_out)
    assert sorted(fitted + held) == list(range(12))
    assert (found.num_fitted, found.num_held_out) == (9, 3)


def test_one_array_of_many_samples_is_split_by_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", np.arange(30, dtype=np.float32).reshape(10, 3))
    found = fit_data(read_samples(tmp_path, [SLOT]), lambda feed: feed)
    assert found.rows_held_out == (3, 7)
    assert [len(feed["x"]) for feed in found.fitted] == [8]


def test_a_model_that_takes_no_batches_gets_samples_one_by_one(tmp_path: Path) -> None:
    def one(feed: Feed) -> None:
        assert len(feed["x"]) == 1

    found = fit_data(samples(tmp_path), one)
    assert [len(feed["x"]) for feed in found.fitted] == [1] * 9


def test_few_samples_are_all_fitted(tmp_path: Path) -> None:
    found = fit_data(samples(tmp_path, 7), lambda feed: feed)
    assert (found.num_fitted, found.num_held_out, len(found.held_out)) == (7, 0, 0)


def test_inputs_beyond_the_memory_lie_on_disk_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_data_module, "_HELD", 1 << 16)
    wide = np.random.default_rng(0).standard_normal((24, 20_000)).astype(np.float32)
    np.save(tmp_path / "wide.npy", wide)
    found = fit_data(read_samples(tmp_path, [Slot("x", (None, 20_000), "float32")]), lambda feed: feed)
    assert isinstance(found.fitted, fit_data_module._Batches)
    folder = found.fitted._store._folder
    assert folder is not None
    assert list(folder.iterdir())
    rows = [row for row in range(24) if row not in found.rows_held_out]
    assert np.array_equal(np.concatenate([feed["x"] for feed in found.fitted]), wide[rows])
    assert np.array_equal(np.concatenate([feed["x"] for feed in found.held_out]), wide[list(found.rows_held_out)])
    del found
    gc.collect()
    assert not folder.exists()


def told(a: Array, b: Array, labels: list[int] | None = None) -> tuple[float, float | None, float | None]:
    """Return error, argmax and IoU of one output."""
    found = agreement(lambda _: [a], lambda _: [b], ["out"], [{"x": np.zeros((len(a), 1))}], labels).outputs[0]
    return found.error, found.argmax, found.iou


def test_class_scores_are_told_by_their_argmax() -> None:
    a = np.eye(4, 5)
    b = a.copy()
    b[0] = [0, 1, 0, 0, 0]
    error, argmax, iou = told(a, b)
    assert argmax == 0.75
    assert iou is None
    assert error == pytest.approx(np.sqrt(2 / 4))


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 8, 8), (1, 8, 8, 1)])
def test_masks_of_one_channel_are_told_by_their_overlap(shape: tuple[int, ...]) -> None:
    a, b = np.full((8, 8), 0.1), np.full((8, 8), 0.1)
    a[:4], b[2:4] = 0.9, 0.9
    assert told(a.reshape(shape), b.reshape(shape))[2] == 0.5
    logits = (a - 0.5).reshape(shape) * 8, (b - 0.5).reshape(shape) * 8
    assert told(*logits)[2] == 0.5


@pytest.mark.parametrize("shape", [(2, 512, 1), (2, 384, 16), (2, 16, 384)])
def test_anchors_of_a_detector_are_neither_classes_nor_pictures(shape: tuple[int, ...]) -> None:
    a = np.random.default_rng(0).random(shape)
    error, argmax, iou = told(a, a + 0.1)
    assert error > 0
    assert (argmax, iou) == (None, None)


def test_masks_of_classes_leave_the_background_out() -> None:
    a, b = np.zeros((2, 3, 8, 8)), np.zeros((2, 3, 8, 8))
    a[:, 0, :4], a[:, 1, 4:] = 1, 1
    b[:, 0, :6], b[:, 1, 6:] = 1, 1
    assert told(a, b)[2] == 0.5
    assert told(a, b)[1] is None


def test_a_mask_that_is_all_but_empty_tells_of_no_overlap() -> None:
    a, b = np.full((1, 1, 64, 64), 0.1), np.full((1, 1, 64, 64), 0.1)
    a[0, 0, 0, :3], b[0, 0, 1] = 0.9, 0.9
    assert told(a, b)[2] is None
    a[0, 0, 1] = 0.9
    assert told(a, b)[2] == pytest.approx(64 / 67)


def test_the_original_says_where_the_foreground_of_both_begins() -> None:
    a, b = np.full((1, 1, 8, 8), 0.1), np.full((1, 1, 8, 8), 0.1)
    a[..., :4], b[..., :4] = 0.9, 0.9
    b[0, 0, 0, 0] = 1.01  # no longer between 0 and 1
    assert told(a, b)[2] == 1.0


def test_integers_are_told_by_the_share_that_is_equal() -> None:
    a = np.arange(8).reshape(2, 4)
    b = a.copy()
    b[0, 0] = 9
    assert told(a, b)[1] == 7 / 8


def test_accuracy_before_and_after() -> None:
    a, b = np.eye(3), np.eye(3)[[0, 0, 2]]
    found = agreement(lambda _: [a], lambda _: [b], [], [{"x": np.zeros((3, 1))}], [0, 1, 1])
    assert found.accuracy_before == pytest.approx(2 / 3)
    assert found.accuracy_after == pytest.approx(1 / 3)


def test_labels_from_folders(tmp_path: Path) -> None:
    for name in ("cat", "ant"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.zeros((1, 3), np.float32))
    found = read_samples(tmp_path, [SLOT])
    assert labels_of(found, "folders", 2, 2) == (0, 1)
    np.save(tmp_path / "lone.npy", np.zeros((1, 3), np.float32))
    with pytest.raises(BadInput, match=r"lone\.npy lies in no class's folder"):
        labels_of(read_samples(tmp_path, [SLOT]), "folders", 3, 2)


@pytest.mark.parametrize("key", ["{stem}.npy", "{stem}"])
def test_labels_by_file(tmp_path: Path, key: str) -> None:
    found = samples(tmp_path, 3)
    file = tmp_path / "labels.csv"
    lines = ["file,class", *(f"{key.format(stem=f'{number:02}')},{number * 2}" for number in (2, 0, 1))]
    file.write_text("\n".join(lines))
    assert labels_of(found, file, 3, 5) == (0, 2, 4)
    file.write_text("\n".join(lines[:3]))
    with pytest.raises(BadInput, match=r"has no label for 01\.npy"):
        labels_of(found, file, 3, 5)


def test_labels_in_order_with_and_without_a_heading(tmp_path: Path) -> None:
    found = samples(tmp_path, 3)
    file = tmp_path / "labels.csv"
    for text in ("class\n1\n0\n1", "1\n0\n1\n", "b\na\nb"):
        file.write_text(text)
        assert labels_of(found, file, 3, 2) == (1, 0, 1)
    for text, message in (("1\n2\n", "2 labels, but there are 3 samples"), ("", "holds no labels")):
        file.write_text(text)
        with pytest.raises(BadInput, match=message):
            labels_of(found, file, 3, 3)
    with pytest.raises(BadInput, match="cannot read the labels"):
        labels_of(found, tmp_path / "none.csv", 3, 3)


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("0\n3\n1\n", 3, "there is a class 3, but the network scores 3"),
        ("cat\ndog\ncat\n", 10, "2 classes are named, but the network scores 10"),
        ("cat\ndog\nfox\n", 2, "3 classes are named, but the network scores 2"),
        ("-1\n0\n1\n", 2, "3 classes are named"),
    ],
)
def test_labels_that_cannot_be_matched_with_scores_are_refused(
    tmp_path: Path, text: str, classes: int, message: str
) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(BadInput, match=message):
        labels_of(samples(tmp_path, 3), tmp_path / "labels.csv", 3, classes)


@pytest.mark.parametrize(
    ("shapes", "known"),
    [
        ([(4, 10)], 10),
        ([(4, 10, 1, 1)], 10),
        ([(4, 1, 10)], 10),
        ([(4, 896, 1)], None),
        ([(4, 3, 8, 8), (4, 7)], 7),
        ([(4, 3, 8, 8)], None),
        ([(4, 1)], None),
    ],
)
def test_classes_are_counted_where_an_output_scores_them(shapes: list[tuple[int, ...]], known: int | None) -> None:
    assert num_classes([np.zeros(shape, np.float32) for shape in shapes]) == known
