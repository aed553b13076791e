"""Folders of inputs: every layout that is promised, and a clear message for what does not fit."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunec.data.sample_files import read_samples
from prunec.data.samples import MAX_ROWS, num_rows
from prunec.errors import BadInput
from prunec.runtime.probes import Slot

IMAGE = Slot("images", ("n", 3, 4, 5), "float32")
TWO = (IMAGE, Slot("scale:0", (2,), "float32"))


def save(folder: Path, name: str, array: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    np.save(folder / name, array)


def images(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


def test_files_are_samples_or_batches(tmp_path: Path) -> None:
    save(tmp_path, "a.npy", images(3, 4, 5))
    save(tmp_path, "b.npy", images(20, 3, 4, 5))
    feeds = list(read_samples(tmp_path, [IMAGE]))
    assert [feed["images"].shape[0] for feed in feeds] == [1, MAX_ROWS, MAX_ROWS, 20 - 2 * MAX_ROWS]
    np.testing.assert_array_equal(np.concatenate([feed["images"] for feed in feeds[1:]]), images(20, 3, 4, 5))
    assert sum(map(num_rows, feeds)) == 21


def test_a_fixed_batch_takes_as_many_as_it_says(tmp_path: Path) -> None:
    save(tmp_path, "a.npy", images(6, 3, 4, 5))
    slot = Slot("x", (2, 3, 4, 5), "float32")
    assert [feed["x"].shape[0] for feed in read_samples(tmp_path, [slot])] == [2, 2, 2]
    with pytest.raises(BadInput, match="has 6 rows, input 'x' takes 4 at a time"):
        list(read_samples(tmp_path, [Slot("x", (4, 3, 4, 5), "float32")]))


@pytest.mark.parametrize(
    "names",
    [
        [("images.npy", "scale_0.npy")],
        [("1.images.npy", "1.scale_0.npy"), ("2.images.npy", "2.scale_0.npy")],
        [("images/1.npy", "scale_0/1.npy"), ("images/2.npy", "scale_0/2.npy")],
        [("1/images.npy", "1/scale_0.npy"), ("2/images.npy", "2/scale_0.npy")],
    ],
)
def test_several_inputs_are_matched_by_name(tmp_path: Path, names: list[tuple[str, str]]) -> None:
    for image, scale in names:
        save(tmp_path, image, images(1, 3, 4, 5))
        save(tmp_path, scale, images(2))
    feeds = list(read_samples(tmp_path, TWO))
    assert len(feeds) == len(names)
    assert all(feed.keys() == {"images", "scale:0"} and feed["scale:0"].shape == (2,) for feed in feeds)


def test_archives_hold_an_array_per_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"images": images(9, 3, 4, 5), "scale:0": images(2)})
    feeds = list(read_samples(tmp_path / "a.npz", TWO))
    assert [feed["images"].shape[0] for feed in feeds] == [8, 1]
    with pytest.raises(BadInput, match="has no array for input 'mask'"):
        read_samples(tmp_path, [IMAGE, Slot("mask", (2,), "float32")])


def test_doubles_become_what_the_input_takes(tmp_path: Path) -> None:
    save(tmp_path, "a.npy", images(3, 4, 5).astype(np.float64))
    assert next(iter(read_samples(tmp_path, [IMAGE])))["images"].dtype == np.float32


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (images(3, 5, 4), "has shape 3x5x4, which input 'images' does not take"),
        (images(0, 3, 4, 5), "has shape 0x3x4x5"),
        (images(3, 4, 5).astype(np.uint8), "holds uint8, input 'images' takes float32"),
        (np.full((3, 4, 5), np.nan, np.float32), "holds NaN or infinity"),
        (np.full((3, 4, 5), 1e300), "holds numbers beyond float32"),
        (np.full((3, 4, 5), "text"), "not numbers"),
        (np.full((3, 4, 5), None), "cannot read"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, array: Any, said: str) -> None:
    save(tmp_path, "a.npy", array)
    with pytest.raises(BadInput, match=said) as caught:
        list(read_samples(tmp_path, [IMAGE]))
    assert "a.npy" in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "changed", "text", "renamed", "member"])
def test_damaged_archives_are_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, images=images(3, 3, 4, 5))
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        file.write_bytes(content[:80] + bytes(40) + content[120:])
    elif damage == "text":
        file.write_text("images")
    elif damage == "renamed":
        np.save(tmp_path / "a.npy", images(3, 3, 4, 5))
        (tmp_path / "a.npy").rename(file)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("images.npy", b"hello")
    with pytest.raises(BadInput, match=r"cannot read .*a\.npz"):
        list(read_samples(tmp_path, [IMAGE]))


def test_folders_that_do_not_fit_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no folder"):
        read_samples(tmp_path / "none", [IMAGE])
    with pytest.raises(BadInput, match="holds no data"):
        read_samples(tmp_path, [IMAGE])
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(BadInput, match="cannot read"):
        list(read_samples(tmp_path, [IMAGE]))
    with pytest.raises(BadInput, match="belongs to no input"):
        read_samples(tmp_path, TWO)
    with pytest.raises(BadInput, match="--normalise is for image files"):
        read_samples(tmp_path, [IMAGE], normalise="unit")
    (tmp_path / "a.npy").rename(tmp_path / "images.npy")
    with pytest.raises(BadInput, match="there is no file for input 'scale:0'"):
        read_samples(tmp_path, TWO)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(BadInput, match="holds arrays and images"):
        read_samples(tmp_path, [IMAGE])


def test_images_are_resized_and_normalised(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[..., 0] = 255
    (tmp_path / "class").mkdir()
    image_module.fromarray(pixels).save(tmp_path / "class" / "a.png")
    (first,) = read_samples(tmp_path, [IMAGE], normalise="unit")
    assert first["images"].shape == (1, 3, 4, 5)
    assert first["images"][0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]
    (first,) = read_samples(tmp_path, [Slot("x", (1, 4, 5, 3), "float32")], normalise="signed")
    assert first["x"][0, 0, 0].tolist() == [1.0, -1.0, -1.0]
    (first,) = read_samples(tmp_path, [IMAGE])
    assert first["images"][0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229)
    (first,) = read_samples(tmp_path, [Slot("x", (1, 4, 5, 3), "uint8")])
    assert first["x"][0, 0, 0].tolist() == [255, 0, 0]


def test_grey_images_of_16_bits_keep_their_shades(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    shades = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    found = []
    for name, pixels in (("eight", shades), ("sixteen", shades.astype(np.uint16) * 257)):
        (tmp_path / name).mkdir()
        image_module.fromarray(pixels).save(tmp_path / name / "a.png")
        found += [read_samples(tmp_path / name, [IMAGE]).first()["images"]]
    np.testing.assert_array_equal(found[1], found[0])
    image_module.fromarray(shades.astype(np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(BadInput, match="floating-point numbers, of no known range"):
        read_samples(tmp_path / "depth.tiff", [IMAGE]).first()


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), ("n", 4, 8, 8), (1, 8)])
def test_images_want_an_image_input_of_known_size(tmp_path: Path, shape: tuple[Any, ...]) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(BadInput, match="image files do not fit this model"):
        read_samples(tmp_path, [Slot("x", shape, "float32")])


def test_a_fixed_batch_takes_so_many_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for number in range(7):
        image.new("RGB", (5, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    feeds = list(read_samples(tmp_path, [Slot("images", (3, 3, 4, 5), "float32")], normalise="raw"))
    assert [feed["images"][:, 0, 0, 0].tolist() for feed in feeds] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(BadInput, match="there are 7 images"):
        read_samples(tmp_path, [Slot("images", (8, 3, 4, 5), "float32")])


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(BadInput, match=r"cannot read the image .*a\.png"):
        list(read_samples(tmp_path, [IMAGE]))


def test_a_model_that_takes_one_row_gets_one_row(tmp_path: Path) -> None:
    save(tmp_path, "a.npy", images(3, 3, 4, 5))

    def one(feed: dict[str, Any]) -> None:
        if len(feed["images"]) > 1:
            raise ValueError("only one")

    samples = read_samples(tmp_path, [IMAGE]).that_run(one, "the model")
    assert [len(feed["images"]) for feed in samples] == [1, 1, 1]

    def none(feed: dict[str, Any]) -> None:
        raise ValueError("not even one")

    with pytest.raises(BadInput, match="does not run on the inputs of"):
        samples.that_run(none, "the model")
