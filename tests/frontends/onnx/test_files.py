"""Files from the field: analysed, pruned and compared with themselves in ONNX Runtime.

Two sets: a folder of deployed models (PRUNEC_SHARED_MODELS; skipped where it is not set), and the
architectures that the onnx package carries for its own tests, whose weights take no space.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_models.inject import inject_alive, zero_filters
from onnx_models.nets import Array, prune, run, unknown_reasons

from prunec.api import analyze_onnx, prune_onnx
from prunec.backends.onnx.save import save_onnx
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx
from prunec.ir.plan import PrunePlan
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import freed

DEPLOYED = (
    "blazeface_front", "bodypix_mnv1_050", "burn_mnist", "dnsmos_v8", "fastestdet", "kws_fp32", "kws_qoperator",
    "mnist_cntk", "openseeface_detect_ortopt", "ppocr_v2_cls", "ppocr_v2_det", "reid_osnet_0248", "sat_captcha_crnn",
    "sedgen_unet", "selfie_landscape", "style_candy", "superres_depthtospace", "ultraface_rfb320", "yolox_nano",
)  # fmt: skip
LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip
NO_CNN = ("kws_qoperator",)
"""All of it is integer arithmetic, which is left alone."""

PLAIN = (
    "bodypix_mnv1_050", "burn_mnist", "dnsmos_v8", "kws_fp32", "mnist_cntk", "sedgen_unet", "squeezenet",
    "superres_depthtospace", "ultraface_rfb320",
)  # fmt: skip
"""Convolutions with no or few residuals: what is made constant can be removed nearly one for one."""

ZERO_FILTERS = {"fastestdet": 4, "openseeface_detect_ortopt": 20, "ppocr_v2_det": 64, "reid_osnet_0248": 61}
"""Convolution channels whose filters are all zero in the files as they are."""

ROUNDING = 4.0
"""Where two files differ by more than 1e-4, they may by so many times what the first differs from itself when
ONNX Runtime optimises it: InstanceNorm divides the rounding of nearly constant channels by its small epsilon."""

SIZES: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "bodypix_mnv1_050": ((1, 128, 160, 3), (1, 96, 96, 3)),
    "dnsmos_v8": ((1, 900, 120), (2, 900, 120)),
    "openseeface_detect_ortopt": ((1, 3, 224, 224), (2, 3, 224, 224)),
    "ppocr_v2_cls": ((1, 3, 48, 192), (2, 3, 32, 100)),
    "ppocr_v2_det": ((1, 3, 96, 128), (2, 3, 64, 96)),
    "sat_captcha_crnn": ((1, 60, 160, 3), (3, 60, 160, 3)),
    "sedgen_unet": ((1, 1, 224, 224), (2, 1, 224, 224)),
    "style_candy": ((1, 3, 720, 720),),
    "swift_f0": ((1, 4096), (1, 3000)),
    "superres_depthtospace": ((1, 1, 224, 224), (2, 1, 224, 224)),
}
"""Inputs to run with where the file leaves sizes open."""


@pytest.fixture
def file(request: pytest.FixtureRequest) -> Path:
    name = request.param
    if name in LIGHT:
        path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    else:
        folder = os.environ.get("PRUNEC_SHARED_MODELS")
        if not folder:
            pytest.skip("PRUNEC_SHARED_MODELS is not set")
        path = next(Path(folder).rglob(f"{name}.onnx"), Path(folder) / f"{name}.onnx")
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def name_of(path: Path) -> str:
    return path.stem.removeprefix("light_")


every_file = pytest.mark.parametrize("file", [*DEPLOYED, *LIGHT], indirect=True)
small_files = pytest.mark.parametrize("file", [*DEPLOYED, *LIGHT[1:7]], indirect=True)


@every_file
def test_every_file_is_understood(file: Path) -> None:
    graph = freed(trace_onnx(load_onnx(file)).graph)
    facts = gather_facts(graph)
    free = facts.classes.is_channel & ~facts.classes.pinned
    assert not unknown_reasons(graph)
    assert free.any() or name_of(file) in NO_CNN


@small_files
def test_injected_constants_are_removed(file: Path, tmp_path: Path) -> None:
    model, before, after = onnx.load(file), tmp_path / "before.onnx", tmp_path / "after.onnx"
    injected = inject_alive(model)
    assert injected.alive, "outputs that do not follow the input agree whatever prunec does"
    onnx.save(model, before)
    _, _, pruned = prune(load_onnx(before))
    save_onnx(pruned, after)
    assert_valid(after)
    assert after.stat().st_size <= before.stat().st_size
    for feeds in inputs_of(file):
        assert_close(before, after, feeds)
    if name_of(file) in PLAIN:
        assert num_elements(after) <= 0.75 * num_elements(before)
        assert num_macs(after) <= 0.75 * num_macs(before)


@small_files
def test_exact_pruning_of_the_file_as_it_is(file: Path, tmp_path: Path) -> None:
    after = tmp_path / "after.onnx"
    _, _, pruned = prune(load_onnx(file))
    save_onnx(pruned, after)
    assert_valid(after)
    assert after.stat().st_size <= file.stat().st_size
    for feeds in inputs_of(file):
        assert_close(file, after, feeds)


@pytest.mark.parametrize("file", ZERO_FILTERS, indirect=True)
def test_zero_filters_go_or_the_node_that_holds_them_is_told(file: Path, tmp_path: Path) -> None:
    report = prune_onnx(file, tmp_path / "after.onnx", validate=False)
    before, after = (zero_filters(onnx.load(path)) for path in (file, tmp_path / "after.onnx"))
    held = {(layer.node, row) for item in report.blocked for layer in item.layers for row in layer.channels}
    stay = [(name, row) for name, rows in after.items() for row in rows]
    assert sum(map(len, before.values())) == ZERO_FILTERS[name_of(file)]
    assert all(item.node and item.reason for item in report.blocked)
    assert len(held.intersection(stay)) >= 0.9 * len(stay)


@small_files
def test_half_of_the_macs_can_go_by_score(file: Path, tmp_path: Path) -> None:
    if name_of(file) in NO_CNN:
        pytest.skip("it has no channels to prune")
    after = tmp_path / "after.onnx"
    _, made, pruned = prune(load_onnx(file), criterion="l1", target_macs=0.5, multiple_of=1)
    save_onnx(pruned, after)
    assert_valid(after)
    for feeds in inputs_of(file):
        shapes = [[result.shape for result in run(path, feeds)] for path in (file, after)]
        assert shapes[0] == shapes[1]
    assert removed_rows(made) > 0
    assert 0.4 * num_macs(file) <= num_macs(after) <= 0.5 * num_macs(file)


def removed_rows(made: PrunePlan) -> int:
    return sum(keep.size - len(keep.keep) for keep in made.keeps if keep.axis == 0)


def num_elements(path: Path) -> int:
    params = trace_onnx(load_onnx(path)).graph.params.values()
    return sum(param.array.size for param in params if not param.literal)


def assert_valid(path: Path) -> None:
    """Check a file as the checker does; experimental ops are unknown to it in every file."""
    if {node.op_type for node in onnx.load(path).graph.node} & {"Affine", "Crop", "ImageScaler"}:
        return
    onnx.checker.check_model(str(path), full_check=True)


def num_macs(path: Path) -> int:
    return analyze_onnx(path).macs


def assert_close(before: Path, after: Path, feeds: Mapping[str, Array], tolerance: float = 1e-4) -> None:
    for index, (expected, got) in enumerate(zip(run(before, feeds), run(after, feeds), strict=True)):
        assert expected.shape == got.shape
        error = largest_gap(expected, got)
        if error > tolerance * max(np.abs(expected).max(initial=0), 1e-2):
            assert error <= ROUNDING * largest_gap(expected, run(before, feeds, optimise=True)[index])


def largest_gap(a: Array, b: Array) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0))


def inputs_of(path: Path) -> list[dict[str, Array]]:
    """Return inputs to compare on: smooth images with some noise, at the sizes of SIZES."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    first, *_ = session.get_inputs()
    fixed = tuple(size if isinstance(size, int) else 1 for size in first.shape)
    rng = np.random.default_rng(0)
    feeds = []
    for shape in SIZES.get(name_of(path), (fixed,)):
        waves = np.sin(np.linspace(0, 9, int(np.prod(shape[1:])))).reshape(1, *shape[1:])
        feeds.append({first.name: (waves + 0.5 * rng.standard_normal(shape)).astype(np.float32)})
    return feeds


@pytest.mark.parametrize("file", ["swift_f0"], indirect=True)
def test_a_file_with_a_spectrum_in_front_is_pruned_behind_it(file: Path, tmp_path: Path) -> None:
    """Shape inference knows nothing behind its STFT, not even ranks."""
    graph = freed(trace_onnx(load_onnx(file)).graph)
    classes = gather_facts(graph).classes
    assert int((classes.is_channel & ~classes.pinned).sum()) == 120
    assert not unknown_reasons(graph)
    after = tmp_path / "after.onnx"
    report = prune_onnx(file, after, criterion="l1", target_macs=0.5, validate=False)
    assert report.after.macs <= 0.5 * report.before.macs
    assert_valid(after)
    feeds = inputs_of(file)[0]
    assert [out.shape for out in run(after, feeds)] == [out.shape for out in run(file, feeds)]
