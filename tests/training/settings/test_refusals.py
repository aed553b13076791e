"""What train-prune is given and cannot use: one clear message, exit status 2, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from prunec.cli.main import execute
from prunec.training.data.imagefiles import decode
from prunec.training.data.sets import load


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of twelve images each, of noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


def refused(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str, model: str = "tiny") -> str:
    """Run the command line, which must refuse, and return what it says."""
    network = ("--model", f"modules.training:{model}", "--device", "cpu", "--steps", "6", "-o", str(output))
    status = execute(["train-prune", *network, *arguments])
    said = capsys.readouterr()
    assert status == 2, said.err
    assert said.out == ""
    assert said.err.count("error[") == 1
    assert "Traceback" not in said.err
    assert not output.exists()
    return said.err


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("raising", (), "modules.training:raising failed\n  why: ValueError: no such backbone"),
        ("without_norms", ("--input-shape", "1x3x8x8"), "why: it has no BatchNorm with a scale"),
        ("frozen_gammas", (), "no channel of the network can be trained away"),
        ("only_evaluates", (), "why: RuntimeError: this network was made for inference"),
        ("normed_vectors", ("--batch-size", "1"), "give a larger --batch-size"),
        ("not_finite", (), "the network's loss is not a number before the first step"),
        ("tiny", ("--input-shape", "3x8x8"), "--input-shape 3x8x8 is not one batch of images"),
        ("tiny", ("--device", "cuda"), "CUDA does not work here"),
        ("tiny", ("--precision", "fp8"), "choose one of: fp32, bf16, fp16"),
        ("tiny", ("--rho", "nan"), "rho is nan"),
        ("tiny", ("--epochs", "2"), "give --epochs or --steps, not both"),
    ],
)
def test_a_network_or_option_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str],
    photos: Path,
    tmp_path: Path,
    model: str,
    options: tuple[str, ...],
    says: str,
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("CUDA works here")
    assert says in refused(capsys, tmp_path / "run", "--data", str(photos), *options, model=model)


def test_a_corrupt_image_is_named(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    bad = photos / "dog" / "07.png"
    bad.write_bytes(bad.read_bytes()[:70])
    assert f"cannot read the image {bad}" in refused(capsys, tmp_path / "run", "--data", str(photos))


def test_one_class_is_none(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    for image in (photos / "dog").iterdir():
        image.unlink()
    (photos / "dog").rmdir()
    assert "has one class, 'cat'" in refused(capsys, tmp_path / "run", "--data", str(photos))


def test_weights_of_other_shapes_are_named(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    save_file({"head.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    given = ("--data", str(photos), "--weights", str(tmp_path / "other.safetensors"))
    assert "do not fit the network" in refused(capsys, tmp_path / "run", *given)


def test_weights_that_are_no_weights_are_told(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("not a state dict")
    said = refused(capsys, tmp_path / "run", "--data", str(photos), "--weights", str(tmp_path / "notes.pt"))
    assert "notes.pt" in said


def test_images_of_every_kind_and_size_become_the_same_tensors(photos: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(photos / "cat" / "00.png")
    Image.fromarray(pixels[..., 0]).save(photos / "cat" / "01.png")
    Image.fromarray(pixels[..., :3]).quantize(16).save(photos / "cat" / "02.png")
    Image.fromarray(pixels[..., 0]).convert("1").save(photos / "cat" / "03.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(photos / "cat" / "04.png")
    Image.fromarray(pixels, "CMYK").save(photos / "cat" / "05.tiff")
    data = load(str(photos), (3, 8, 8))
    assert data.image_shape == (3, 8, 8)
    assert len(data.train) + len(data.test) == 25  # 05 stands twice, as .png and as .tiff


def test_grey_images_of_16_bits_keep_their_shades(tmp_path: Path) -> None:
    shades = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(shades).save(tmp_path / "eight.png")
    Image.fromarray(shades.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    for channels in (1, 3):
        expected = decode(tmp_path / "eight.png", (channels, 8, 8))
        np.testing.assert_array_equal(decode(tmp_path / "sixteen.png", (channels, 8, 8)), expected)


def test_images_of_floating_point_numbers_are_refused(
    capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(photos / "cat" / "depth.tiff")
    assert "floating-point numbers" in refused(capsys, tmp_path / "run", "--data", str(photos))
