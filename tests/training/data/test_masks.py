"""Images with masks: folders of them, the embedded set, and augmentation that moves both alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunec.errors import BadInput
from prunec.training.data.augment import AUGMENTS, CROP_AND_FLIP, NO_AUGMENT, Augment, pipeline
from prunec.training.data.batches import Batches
from prunec.training.data.photos import make_digits_on_photos
from prunec.training.data.sets import load
from prunec.training.data.sources import Images, Streamed
from prunec.training.learning.objective import VOID

Values = np.ndarray


def write_pair(folder: Path, split: str, name: str, mask: Values, masks: str = "masks") -> None:
    """Write an image whose red channel says where its mask is, and the mask."""
    for root in ("images", masks):
        (folder / root / split).mkdir(parents=True, exist_ok=True)
    image = np.zeros((*mask.shape, 3), dtype=np.uint8)
    image[..., 0] = mask
    Image.fromarray(image).save(folder / "images" / split / f"{name}.png")
    Image.fromarray(mask.astype(np.uint8)).save(folder / masks / split / f"{name}.png")


def binary_mask(seed: int, shape: tuple[int, int] = (8, 8), values: tuple[int, ...] = (0, 255)) -> Values:
    return np.random.default_rng(seed).choice(np.array(values, dtype=np.uint8), shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("val", 2)):
        for index in range(count):
            write_pair(tmp_path, split, f"{index}", binary_mask(index))
    return tmp_path


def in_memory(source: object) -> Images:
    assert isinstance(source, Images)
    return source


def test_a_binary_set_is_read_with_its_splits_and_shares(folder: Path) -> None:
    data = load(str(folder), (3, 8, 8))
    train = in_memory(data.train)
    assert (data.task, data.classes) == ("segmentation", ("background", "foreground"))
    assert (len(data.train), len(data.test)) == (5, 2)
    assert train.targets.dtype == torch.uint8
    assert torch.equal(train.targets * 255, train.pixels[:, 0])
    assert data.shares[1] == pytest.approx(float(train.targets.float().mean()))


def test_grey_128_is_void_in_a_binary_set(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pair(tmp_path, split, "a", binary_mask(0, values=(0, 128, 255)))
    data = load(str(tmp_path), (3, 8, 8))
    train = in_memory(data.train)
    assert torch.equal(train.targets == VOID, train.pixels[:, 0] == 128)
    assert sum(data.shares) == pytest.approx(1)


def test_class_indices_are_named_by_classes_txt_and_void_is_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pair(tmp_path, split, "a", binary_mask(3, values=(0, 1, 2, 3)))
    (tmp_path / "classes.txt").write_text("sky\nroad\nvoid\ncar\n")
    data = load(str(tmp_path), (3, 8, 8))
    train = in_memory(data.train)
    assert data.classes == ("sky", "road", "car")
    assert torch.equal(train.targets == VOID, train.pixels[:, 0] == 2)
    assert torch.equal(train.targets == 2, train.pixels[:, 0] == 3)


def test_class_indices_without_names_are_counted_and_255_is_void(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pair(tmp_path, split, "a", binary_mask(1, values=(0, 1, 4, 255)))
    assert load(str(tmp_path), (3, 8, 8)).classes == ("0", "1", "2", "3", "4")


def test_a_network_with_one_output_takes_the_foreground_masks_of_a_set_with_both(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pair(tmp_path, split, "a", binary_mask(1, values=(0, 1, 2)))
        write_pair(tmp_path, split, "a", binary_mask(1), masks="masks_fg")
    assert load(str(tmp_path), (3, 8, 8), num_logits=1).classes == ("background", "foreground")
    assert load(str(tmp_path), (3, 8, 8), num_logits=3).classes == ("0", "1", "2")


def test_without_splits_every_tenth_image_is_for_testing(tmp_path: Path) -> None:
    for index in range(20):
        write_pair(tmp_path, ".", f"{index:02}", binary_mask(index))
    data = load(str(tmp_path), (3, 8, 8))
    assert (len(data.train), len(data.test)) == (18, 2)


def test_masks_are_resized_without_inventing_values_and_palettes_give_indices(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pair(tmp_path, split, "a", binary_mask(1, (9, 13), values=(0, 3)))
        path = tmp_path / "masks" / split / "a.png"
        indices = Image.fromarray(binary_mask(1, (9, 13), values=(0, 3)))
        indices.putpalette(list(range(256)) * 3)
        indices.save(path)
    data = load(str(tmp_path), (3, 32, 32))
    assert set(in_memory(data.train).targets.unique().tolist()) == {0, 3}
    assert in_memory(data.train).targets.shape == (1, 32, 32)


def unlink_mask(folder: Path) -> None:
    (folder / "masks/train/3.png").unlink()


def other_size(folder: Path) -> None:
    Image.fromarray(binary_mask(0, (4, 6))).save(folder / "masks/train/3.png")


def odd_value(folder: Path) -> None:
    (folder / "classes.txt").write_text("sky\nroad\n")
    for path in sorted((folder / "masks").rglob("*.png")):
        Image.fromarray(binary_mask(0, values=(0, 1, 37))).save(path)


def in_colour(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(folder / "masks/train/3.png")


def one_value(folder: Path) -> None:
    for path in (folder / "masks/train").iterdir():
        Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)).save(path)


def names_in_latin_1(folder: Path) -> None:
    odd_value(folder)
    (folder / "classes.txt").write_bytes("for\xeat\nroute\n".encode("latin-1"))


def no_test(folder: Path) -> None:
    for path in (folder / "images/val").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unlink_mask, r"1 of 5 images have no mask in .*masks"),
        (other_size, r"masks/train/3\.png is 6x4, its image 8x8"),
        (odd_value, r"has pixels of value 37"),
        (in_colour, r"3\.png has mode RGB"),
        (one_value, r"every pixel of the masks in .*masks/train is 255"),
        (names_in_latin_1, r"classes\.txt is not UTF-8"),
        (no_test, r"5 images to train and 0 to test"),
    ],
)
def test_a_folder_of_masks_that_makes_no_sense_is_refused(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(BadInput, match=message):
        load(str(folder), (3, 8, 8))


def test_masks_are_streamed_like_images(folder: Path) -> None:
    kept, streamed = load(str(folder), (3, 8, 8)), load(str(folder), (3, 8, 8), memory=100)
    assert isinstance(streamed.train, Streamed)
    assert (kept.classes, kept.shares, kept.mean) == (streamed.classes, streamed.shares, streamed.mean)
    made = pipeline("dataset", CROP_AND_FLIP, kept.mean, kept.std, 3)
    for wanted, found in zip(
        Batches(kept.train, 2, made, 0).at(3), Batches(streamed.train, 2, made, 0).at(3), strict=True
    ):
        assert torch.equal(wanted, found)


def test_digits_on_photos_are_the_same_every_time_and_share_nothing_between_splits() -> None:
    raw, again = make_digits_on_photos((32, 48)), make_digits_on_photos((32, 48))
    for part in ("train", "test"):
        for one, other in zip(getattr(raw, part), getattr(again, part), strict=True):
            assert torch.equal(one, other)
    pixels, masks = raw.train
    assert pixels.shape == (800, 3, 32, 48)
    assert set(masks.unique().tolist()) == {0, 1}
    assert float(masks.float().flatten(1).mean(1).min()) > 0.02
    assert not torch.equal(raw.train[0][:200], raw.test[0])


def test_the_mask_of_a_digit_is_where_its_colour_is() -> None:
    pixels, masks = make_digits_on_photos((64, 64)).test
    inside = masks.bool()
    for picture, mask in zip(pixels[:20].float(), inside[:20], strict=True):
        core = torch.nn.functional.max_pool2d(1 - mask[None].float(), 5, stride=1, padding=2)[0] == 0
        if core.sum() > 10:
            ink = picture[:, core]
            same = ((ink - ink.median(dim=1, keepdim=True).values).abs() <= 2).all(dim=0)
            assert same.float().mean() > 0.8, "a digit has one colour"


def test_the_picture_does_not_depend_on_its_size() -> None:
    small, large = (make_digits_on_photos((size, size)).test[1].float() for size in (32, 64))
    shrunk = torch.nn.functional.avg_pool2d(large[:, None], 2)[:, 0]
    assert float((small - shrunk).abs().mean()) < 0.05


def marked(count: int = 64, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures that are white exactly where their masks are 1."""
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    masks = ((ys > 6) & (ys < 17) & (xs > 3) & (xs < 12)).to(torch.uint8).expand(count, size, size)
    return (masks * 255)[:, None].expand(count, 3, size, size), masks


@pytest.mark.parametrize("name", ["shift", "crop-flip"])
def test_masks_move_with_their_images_and_what_comes_in_is_void(name: str) -> None:
    pixels, masks = marked()
    # With mean 0 and deviation 1 the pixels come out as they are, in 0..1.
    plain = pipeline("dataset", AUGMENTS[name], (0.0,) * 3, (1.0,) * 3, 3)
    images, moved = plain.train(pixels, masks, torch.Generator().manual_seed(0))
    counted = moved != VOID
    assert torch.equal(images[:, 0][counted], moved[counted].float())
    assert not counted.all()
    assert len({tuple(mask.flatten().tolist()) for mask in moved}) > 8


def test_kornia_moves_masks_with_their_images() -> None:
    pytest.importorskip("kornia", reason="needs kornia: pip install 'prunec[augment]'")
    pixels, masks = marked()
    plain = pipeline("dataset", AUGMENTS["scene"], (0.0,) * 3, (1.0,) * 3, 3)
    images, moved = plain.train(pixels, masks, torch.Generator().manual_seed(0))
    assert set(moved.unique().tolist()) == {0, 1, VOID}
    inside, outside = images[:, 0][moved == 1], images[:, 0][moved == 0]
    assert float((inside > 0.4).float().mean()) > 0.97
    assert float((outside < 0.4).float().mean()) > 0.97
    assert len({int((mask == 1).sum()) for mask in moved}) > 8, "scaled"


@pytest.mark.parametrize("channels", [1, 3])
def test_kornia_draws_from_the_generator_and_from_nothing_else(channels: int) -> None:
    pytest.importorskip("kornia", reason="needs kornia: pip install 'prunec[augment]'")
    pixels = torch.randint(0, 256, (6, channels, 16, 16), dtype=torch.uint8)
    plain = pipeline("dataset", AUGMENTS["scene"], (0.5,) * channels, (0.5,) * channels, channels)
    results = []
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        state = torch.get_rng_state()
        results.append(plain.train(pixels, torch.arange(6), torch.Generator().manual_seed(7))[0])
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*results)
    assert results[0].shape == (6, channels, 16, 16)
    other = plain.train(pixels, torch.arange(6), torch.Generator().manual_seed(8))[0]
    assert not torch.equal(results[0], other)


@pytest.mark.parametrize("how", [NO_AUGMENT, CROP_AND_FLIP], ids=["none", "crop-flip"])
def test_labels_pass_through_augmentation(how: Augment) -> None:
    labels = torch.arange(4)
    made = pipeline("standardise", how, (0.5,) * 3, (0.2,) * 3, 3)
    _, targets = made.train(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels, torch.Generator().manual_seed(0))
    assert targets is labels
