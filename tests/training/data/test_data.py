"""Data sets and augmentation: what is read, in which order, and that a seed means the same pictures."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from prunec.errors import BadInput
from prunec.training.data import augment
from prunec.training.data.augment import CROP_AND_FLIP, NO_AUGMENT, PAPER_AUGMENT, pipeline
from prunec.training.data.batches import Batches, plain_batches, sampled_batches
from prunec.training.data.sets import load
from prunec.training.data.sources import Example, Images, Streamed


def write_image(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                write_image(tmp_path / split / name / f"{index}.png", 100 * label + index)
    return tmp_path


def test_digits_are_split_once_and_for_all() -> None:
    digits = load("digits", (1, 32, 32))
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.train.pixels.dtype == torch.uint8
    assert digits.image_shape == (1, 32, 32)
    again = load("digits", (1, 32, 32))
    assert torch.equal(digits.train.pixels, again.train.pixels)
    assert torch.equal(digits.test.targets, again.test.targets)
    assert set(digits.test.targets.tolist()) == set(range(10))


def test_digits_can_be_had_in_colour() -> None:
    pixels = load("digits", (3, 16, 16)).test.pixels
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_a_folder_is_read_by_class_and_name(folder: Path) -> None:
    data = load(str(folder), (3, 8, 8))
    assert data.classes == ("cat", "dog")
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert data.test.pixels[:, 1, 3, 3].tolist() == [0, 1, 100, 101]
    assert data.mean == pytest.approx([51 / 255] * 3)


def test_images_are_resized_and_greyed_to_what_the_network_takes(folder: Path) -> None:
    assert load(str(folder), (1, 4, 6)).train.pixels.shape == (6, 1, 4, 6)


def test_without_a_test_folder_every_tenth_image_of_a_class_is_kept_for_testing(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 10)):
        for index in range(count):
            write_image(tmp_path / name / f"{index:02}.png", index)
    data = load(str(tmp_path), (3, 8, 8))
    assert data.test.targets.tolist() == [0, 0, 1]
    assert len(data.train) == 27


def test_jpeg_2000_files_are_read(shared_data: Path) -> None:
    data = load(str(shared_data / "cifar10-ci"), (3, 32, 32))
    assert (len(data.train), len(data.test)) == (5000, 1000)
    assert data.classes[0] == "airplane"
    assert data.mean == pytest.approx((0.4914, 0.4821, 0.4465), abs=0.005)


def cifar_batch(seed: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4).tolist()


def test_cifar_python_and_binary_batches_give_the_same_images(tmp_path: Path) -> None:
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels, labels = cifar_batch(index)
        python, binary = tmp_path / "py" / "cifar-10-batches-py", tmp_path / "bin"
        python.mkdir(parents=True, exist_ok=True)
        binary.mkdir(exist_ok=True)
        (python / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))
        np.concatenate((np.array(labels, dtype=np.uint8)[:, None], pixels), axis=1).tofile(binary / f"{name}.bin")
    a, b = load(str(tmp_path / "py"), (3, 32, 32)), load(str(tmp_path / "bin"), (3, 32, 32))
    assert (len(a.train), len(a.test)) == (20, 4)
    assert torch.equal(a.train.pixels, b.train.pixels)
    assert torch.equal(a.test.targets, b.test.targets)
    assert a.train.pixels[0].flatten().tolist() == cifar_batch(0)[0][0].tolist()


def test_a_cifar_batch_cannot_run_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "sprung"),)

    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Trap(), b"labels": [0]}))
    with pytest.raises(BadInput, match="cannot read the CIFAR-10 batch"):
        load(str(tmp_path), (3, 32, 32))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "train/cat/0.png").write_bytes(b"not an image"), "cannot read the image"),
        (lambda f: (f / "test/dog").rename(f / "test/wolf"), "different classes"),
        (lambda f: [p.unlink() for p in (f / "test").rglob("*.png")], "0 to test"),
        (lambda f: [p.unlink() for p in (f / "train/dog").iterdir()], "there is no image in .*train/dog"),
        (lambda f: shutil.rmtree(f / "test"), r"has train/ and no test/ or val/"),
        (lambda f: shutil.rmtree(f / "train"), r"has test/ and no train/"),
    ],
    ids=["damaged", "classes", "empty", "empty-class", "no-test", "no-train"],
)
def test_a_folder_that_makes_no_sense_is_refused(folder: Path, spoil: object, message: str) -> None:
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(BadInput, match=message):
        load(str(folder), (3, 8, 8))


@pytest.mark.parametrize(("shape", "why"), [((4, 8, 8), "images have 1 or 3\n"), ((8, 8, 3), "with channels last\n")])
def test_a_network_that_takes_no_images_is_refused(folder: Path, shape: tuple[int, int, int], why: str) -> None:
    with pytest.raises(BadInput, match=f"the network takes images of {shape[0]} channels\n(.*){why}"):
        load(str(folder), shape)


def test_hidden_files_are_no_images(folder: Path) -> None:
    before = len(load(str(folder), (3, 8, 8)).train)
    (folder / "train/cat/._0.png").write_bytes(b"what macOS puts beside files")
    assert len(load(str(folder), (3, 8, 8)).train) == before


def test_a_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadInput, match="no data set 'cifar'"):
        load("cifar", (3, 32, 32))


def test_images_that_do_not_fit_in_memory_are_read_while_training_and_give_the_same_batches(folder: Path) -> None:
    kept, streamed = load(str(folder), (3, 8, 8)), load(str(folder), (3, 8, 8), memory=500)
    assert isinstance(kept.train, Images)
    assert isinstance(streamed.train, Streamed)
    assert (kept.mean, kept.std, kept.classes) == (streamed.mean, streamed.std, streamed.classes)
    made = pipeline("standardise", CROP_AND_FLIP, kept.mean, kept.std, 3)
    ours, theirs = (Batches(data.train, 2, made, seed=1) for data in (kept, streamed))
    for step in (0, 1, 2, 7, 4):
        for wanted, found in zip(ours.at(step), theirs.at(step), strict=True):
            assert torch.equal(wanted, found)
    for wanted, found in zip(plain_batches(kept.test, made, 3), plain_batches(streamed.test, made, 3), strict=True):
        assert torch.equal(wanted[0], found[0])
        assert torch.equal(wanted[1], found[1])


def test_an_image_that_cannot_be_read_while_training_is_named(folder: Path) -> None:
    data = load(str(folder), (3, 8, 8), memory=500)
    (folder / "test/dog/1.png").write_bytes(b"damaged meanwhile")
    made = pipeline("standardise", NO_AUGMENT, data.mean, data.std, 3)
    with pytest.raises(BadInput, match=r"cannot read the image .*1\.png"):
        list(plain_batches(data.test, made, 2))


def test_batches_are_read_ahead_and_what_is_not_wanted_any_more_is_dropped() -> None:
    class Counting:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def __len__(self) -> int:
            return 20

        def __call__(self, index: int) -> Example:
            self.asked.append(index)
            return np.full((1, 2, 2), index, np.uint8), np.array(index)

    decoder = Counting()
    source = Streamed(decoder)
    source.expect([torch.tensor([1, 2]), torch.tensor([3, 4])])
    first = source.take(torch.tensor([1, 2]))
    assert first[1].tolist() == [1, 2]
    assert first[0][:, 0, 0, 0].tolist() == [1, 2]
    source.expect([torch.tensor([5, 6])])
    assert source.take(torch.tensor([5, 6]))[1].tolist() == [5, 6]
    assert decoder.asked.count(1) == decoder.asked.count(5) == 1


def pixels(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_a_random_crop_is_a_window_of_the_zero_padded_image() -> None:
    images = pixels(20)
    cropped = augment.random_crop(images, 4, torch.Generator().manual_seed(0))
    shifts = torch.randint(0, 9, (2, 20), generator=torch.Generator().manual_seed(0))
    for image, crop, top, left in zip(images, cropped, *shifts, strict=True):
        padded = F.pad(image, (4, 4, 4, 4))
        assert torch.equal(crop, padded[:, top : top + 32, left : left + 32])
    assert len({tuple(shift) for shift in shifts.T.tolist()}) > 10


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    images = pixels(200)
    flipped = augment.random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(3)).all((1, 2, 3))
    untouched = (flipped == images).all((1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert 70 < mirrored.sum() < 130


def test_contrast_stretches_about_the_channel_means() -> None:
    images = pixels().float() / 255
    stretched = augment.random_contrast(images, (0.2, 1.8), torch.Generator().manual_seed(0))
    torch.testing.assert_close(stretched.mean((2, 3)), images.mean((2, 3)))
    factors = stretched.std((1, 2, 3)) / images.std((1, 2, 3))
    assert factors.min() >= 0.2
    assert factors.max() <= 1.8
    assert factors.std() > 0.1


def test_standardised_images_have_mean_0_and_deviation_1_and_flat_ones_are_finite() -> None:
    images = pipeline("standardise", NO_AUGMENT, (0.5,) * 3, (0.2,) * 3, 3).test(pixels())
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((1, 2, 3), correction=0), torch.ones(6))
    flat = pipeline("standardise", NO_AUGMENT, (0.5,) * 3, (0.2,) * 3, 3).test(torch.full((1, 3, 8, 8), 7).byte())
    assert torch.equal(flat, torch.zeros(1, 3, 8, 8))


def test_imagenet_normalisation_is_that_of_published_weights() -> None:
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    images = pipeline("imagenet", NO_AUGMENT, (0.1,) * 3, (0.1,) * 3, 3).test(white)
    assert images[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


@pytest.mark.parametrize("how", [CROP_AND_FLIP, PAPER_AUGMENT], ids=["crop-flip", "paper"])
def test_a_seed_gives_the_same_batches_whatever_came_before(how: augment.Augment) -> None:
    images = Images(pixels(40), torch.arange(40))
    made = pipeline("standardise", how, (0.5,) * 3, (0.2,) * 3, 3)
    straight, jumping = Batches(images, 8, made, seed=5), Batches(images, 8, made, seed=5)
    wanted = [straight.at(step) for step in range(12)][11]
    found = jumping.at(11)
    assert torch.equal(wanted[0], found[0])
    assert torch.equal(wanted[1], found[1])
    assert not torch.equal(Batches(images, 8, made, seed=6).at(11)[0], found[0])


def test_an_epoch_shows_each_image_once() -> None:
    images = Images(pixels(40), torch.arange(40))
    batches = Batches(images, 8, pipeline("standardise", NO_AUGMENT, (0.5,) * 3, (0.2,) * 3, 3), seed=0)
    first = torch.cat([batches.at(step)[1] for step in range(5)])
    second = torch.cat([batches.at(step)[1] for step in range(5, 10)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert not torch.equal(first, second)


def test_a_sample_of_a_folder_is_of_all_its_classes() -> None:
    """The statistics that a network ends with were those of the first class alone, where a set has many images."""
    labels = torch.arange(10).repeat_interleave(50)
    images = Images(labels.to(torch.uint8)[:, None, None, None].expand(500, 1, 2, 2).contiguous(), labels)
    made = pipeline("dataset", NO_AUGMENT, (0.0,), (1.0,), 1)
    batches = list(sampled_batches(images, made, 10, 20, seed=0))
    seen = torch.cat([targets for _, targets in batches])
    assert seen.numel() == 200
    assert torch.bincount(seen, minlength=10).min() >= 10
    again = torch.cat([targets for _, targets in sampled_batches(images, made, 10, 20, seed=0)])
    assert torch.equal(seen, again)
