"""What all tests share: hypothesis profiles, skips with a reason, data that may not be there, small files."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from onnx_models.conv import save_conv

# Derandomised in CI: a failure there is the same failure here. No deadlines: first calls compile and load.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files from what is computed now")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    libraries = all(importlib.util.find_spec(name) is not None for name in ("torchvision", "timm"))
    real = pytest.mark.skip(reason="needs torchvision and timm: make real")
    gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "real" in item.keywords and not libraries:
            item.add_marker(real)
        if "gpu" in item.keywords and not _has_cuda():
            item.add_marker(gpu)


def _has_cuda() -> bool:
    from prunec.runtime.sessions import num_cuda_devices

    return num_cuda_devices() > 0


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of bars, lying or standing, to train on; see training_bars.py."""
    from training_bars import write_bars

    return write_bars(tmp_path_factory.mktemp("bars"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Unpacked data sets and weights; see .ci/run."""
    return _folder_from("PRUNEC_SHARED_DATA")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """A folder of ONNX files from the field; see .ci/run."""
    return _folder_from("PRUNEC_SHARED_MODELS")


def _folder_from(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return Path(value)


@pytest.fixture
def conv_file(tmp_path: Path) -> Path:
    """An ONNX file: x[batch, 3, h, w] -> conv(3, 4) -> relu -> y, batch and size open."""
    return save_conv(tmp_path / "conv.onnx")
