"""ONNX Runtime sessions: opening them quietly, on the provider that really works, and timing them.

Owns everything that depends on ONNX Runtime's habits. What is compared is in prunec/check/validate.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prunec.errors import BadInput, UnsupportedModel
from prunec.files import check_name
from prunec.runtime.probes import Array, Feed, InputKind, Slot

ProviderName = Literal["auto", "cpu", "cuda"]
Model = str | Path | bytes
"""A file, or a serialised ModelProto."""

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_NUMPY_TYPES = {"float": "float32", "double": "float64"}
# Tried in turn for sizes that a file leaves open, until the first model runs.
_SIZES = (224, 64, 320, 32, 128, 16)


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider that works here, and one sentence where it is not the one asked for."""

    name: Literal["cpu", "cuda"]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Runner:
    """A model that can be run; ``name`` is how messages call it."""

    name: str
    session: Any

    @property
    def inputs(self) -> tuple[tuple[str, tuple[int | str | None, ...], str], ...]:
        """Name, shape and ONNX type of every input, in order."""
        return tuple((item.name, tuple(item.shape), item.type) for item in self.session.get_inputs())

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.session.get_outputs())

    @property
    def provider(self) -> Literal["cpu", "cuda"]:
        """What really runs: ONNX Runtime falls back without an error."""
        return "cuda" if _CUDA in self.session.get_providers() else "cpu"

    def __call__(self, feed: Feed) -> list[Array]:
        """Run once; outputs in order.

        Raises:
            UnsupportedModel: an output is a sequence or a map.
            Exception: whatever ONNX Runtime raises; its classes have no common base.
        """
        results = self.session.run(None, feed)
        for name, result in zip(self.outputs, results, strict=True):
            if not isinstance(result, np.ndarray):
                raise UnsupportedModel(
                    f"output {name!r} of {self.name} is not a tensor", why="only tensors are compared"
                )
        return list(results)


def open_runner(
    model: Model,
    name: str,
    provider: Literal["cpu", "cuda"],
    *,
    optimise: bool,
    profile: Path | None = None,
    threads: int = 0,
) -> Runner:
    """Open a session.

    Args:
        model: what to run.
        name: how messages call it.
        provider: where to run it; on "cuda" ONNX Runtime itself falls back to the CPU, see Runner.provider.
        optimise: False keeps the graph as it is (for numerics), True takes the default level (for latency).
        profile: what the name of ONNX Runtime's own profile begins with; the session writes it when told to.
        threads: within a node; 0 is one per core.

    Raises:
        BadInput: there is no such file, or it is not a model.
        UnsupportedModel: ONNX Runtime cannot run it.
    """
    import onnxruntime as ort

    if not isinstance(model, bytes) and not Path(model).is_file():
        raise BadInput(f"there is no file {model}", do="give the path of an .onnx file")
    if not isinstance(model, bytes):
        check_name(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Two sessions are timed in turn: the idle one's threads must not spin on the other's cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    with quiet():
        try:
            session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=_providers(provider)
            )
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise _cannot_open(error, name) from error
    return Runner(name, session)


def choose_provider(asked: ProviderName) -> Provider:
    """Return the provider to use: CUDA where it is asked for or left open and a device is there."""
    if asked == "cpu":
        return Provider("cpu")
    import onnxruntime as ort

    if _CUDA not in ort.get_available_providers():
        why = "this ONNX Runtime has no CUDA provider"
    elif num_cuda_devices() == 0:
        why = "there is no CUDA device"
    else:
        return Provider("cuda")
    return Provider("cpu", f"{why}: ran on the CPU")


def num_cuda_devices() -> int:
    """Ask the CUDA driver, not a framework, how many devices there are (0 where there is no driver)."""
    name = {"win32": "nvcuda.dll", "darwin": ""}.get(sys.platform, "libcuda.so.1")
    if not name:
        return 0
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep ONNX Runtime's own messages off stdout and stderr while sessions are opened.

    A provider that fails to load writes through the default logger, and the Python binding prints.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(2)  # the library's default; it cannot be asked for


def input_kinds(
    runner: Runner,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    batch: int = 1,
    channels: int = 3,
    size: int = 224,
) -> tuple[InputKind, ...]:
    """Return a concrete shape and dtype for every input of a model.

    Args:
        runner: the model.
        shapes: the user's shapes by input name; the key "" is the only (or the next) input.
        batch: for an open first axis.
        channels: for an open axis 1 of an input that looks like images.
        size: for any other open axis. One symbol gets one size.

    Raises:
        BadInput: a name that is no input, or a shape that the model does not allow.
        UnsupportedModel: an input that is not a numeric tensor.
    """
    given = name_shapes([name for name, _, _ in runner.inputs], shapes or {})
    symbols: dict[str, int] = {}
    kinds = []
    for name, shape, onnx_type in runner.inputs:
        wanted = given.get(name)
        if wanted is not None:
            _check_shape(name, shape, wanted)
        filled = wanted if wanted is not None else _fill(shape, batch, channels, size, symbols)
        kinds.append(InputKind(name, filled, _dtype(name, onnx_type)))
    return tuple(kinds)


def slots(runner: Runner, shapes: Mapping[str, Sequence[int]] | None = None) -> tuple[Slot, ...]:
    """Return what a user's samples must fill: every input, with sizes left open where file and user leave them.

    Raises:
        BadInput, UnsupportedModel: see ``input_kinds``.
    """
    given = name_shapes([name for name, _, _ in runner.inputs], shapes or {})
    found = []
    for name, shape, onnx_type in runner.inputs:
        wanted = given.get(name)
        if wanted is not None:
            _check_shape(name, shape, wanted)
            # A batch size that the user gives is one to start from: samples bring their own.
            shape = (shape[0] if shape else None, *wanted[1:])
        found.append(Slot(name, shape, _dtype(name, onnx_type)))
    return tuple(found)


def name_shapes(names: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Give each shape its input: the key "" stands for the first input that is not named.

    Raises:
        BadInput: a key is not an input's name.
    """
    for key in shapes:
        if key and key not in names:
            raise BadInput(f"the model has no input {key!r}", why=f"its inputs: {', '.join(names) or 'none'}")
    given = {key: tuple(int(size) for size in shape) for key, shape in shapes.items() if key}
    if "" in shapes:
        free = [name for name in names if name not in given]
        if not free:
            raise BadInput("there is a shape too many", why=f"inputs: {', '.join(names) or 'none'}")
        given[free[0]] = tuple(int(size) for size in shapes[""])
    return given


def first_channels(model: Model) -> int:
    """Return how many channels the first convolution of an ONNX model takes, 3 where none tells."""
    graph = _skeleton(model)
    dims = {tensor.name: tensor.dims for tensor in graph.initializer}
    for node in graph.node:
        weight = dims.get(node.input[1], []) if node.op_type == "Conv" and len(node.input) > 1 else []
        if len(weight) > 1:
            return int(weight[1]) * next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return 3


def computes_in_half(model: Model) -> bool:
    """Tell whether an ONNX model holds or makes 16-bit floats, whatever its outputs are."""
    graph = _skeleton(model)
    stored = [tensor.data_type for tensor in graph.initializer]
    made = [entry.t.data_type for node in graph.node for entry in node.attribute if entry.HasField("t")]
    cast = [entry.i for node in graph.node if node.op_type == "Cast" for entry in node.attribute if entry.name == "to"]
    return not _HALF_TYPES.isdisjoint([*stored, *made, *cast])


_HALF_TYPES = frozenset({10, 16})  # TensorProto.FLOAT16 and BFLOAT16


def _skeleton(model: Model) -> Any:
    """Return the graph of a model that ONNX Runtime has taken, without what lies in other files."""
    import onnx

    if isinstance(model, bytes):
        return onnx.load_from_string(model).graph
    try:
        return onnx.load(str(model), load_external_data=False).graph
    except Exception:  # noqa: BLE001 - ONNX Runtime's own formats (.ort): nothing can be told from them
        return onnx.GraphProto()


def candidate_sizes(runner: Runner, shapes: Mapping[str, Sequence[int]] | None) -> tuple[int, ...]:
    """Return the sizes worth trying for a model's open axes: one where none is open."""
    first = input_kinds(runner, shapes, size=_SIZES[0])
    return _SIZES if first != input_kinds(runner, shapes, size=_SIZES[1]) else _SIZES[:1]


def interleaved_latency(a: Runner, b: Runner, feed: Feed, runs: int, budget_s: float = 10.0) -> tuple[float, float]:
    """Return the median milliseconds per run of two models, timed in turn; see ``interleaved_times``."""
    first, second = interleaved_times(a, b, feed, runs, budget_s)
    return statistics.median(first), statistics.median(second)


def interleaved_times(
    a: Runner, b: Runner, feed: Feed, runs: int, budget_s: float = 10.0
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each run of two models, timed in turn.

    Turns alternate in order, so that neither always runs on the other's warm caches; at least three
    rounds, at most ``runs``, and no new round after ``budget_s`` seconds.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(2):
        a.session.run(None, feed)
        b.session.run(None, feed)
    started = time.perf_counter()
    for turn in range(max(3, runs)):
        if turn >= 3 and time.perf_counter() - started > budget_s:
            break
        for is_a in (turn % 2 == 0, turn % 2 == 1):
            before = time.perf_counter()
            (a if is_a else b).session.run(None, feed)
            times[is_a].append(1e3 * (time.perf_counter() - before))
    return times[True], times[False]


def kernel_times(models: Sequence[bytes], runs: int, budget_s: float, *, threads: int = 0) -> list[float]:
    """Return the microseconds that the kernels of each model take in a run on the CPU, the models run in turns.

    They come from ONNX Runtime's own profile: what a call costs is not in them. Neither is the way into and out of
    the blocked layout of convolutions, which a network takes at its ends and a layer by itself at its own. Other work
    on the machine only ever adds, so the mean of the faster half counts.

    Args:
        models: all inputs are float32, of known sizes; noise is fed.
        runs: of each model at most, and at least five.
        budget_s: seconds after which there are no more.
        threads: as for ``open_runner``.

    Raises:
        UnsupportedModel: ONNX Runtime cannot run one of them.
    """
    rng = np.random.default_rng(0)
    # A session that fails still has its profile open.
    with tempfile.TemporaryDirectory(prefix="prunec-", ignore_cleanup_errors=True) as scratch:
        # The names end in the second: sessions opened in one second would write into one file.
        prefixes = [Path(scratch) / f"profile{index}" for index in range(len(models))]
        runners = [
            open_runner(model, "the layer", "cpu", optimise=True, profile=prefix, threads=threads)
            for model, prefix in zip(models, prefixes, strict=True)
        ]
        feeds = [
            {kind.name: rng.standard_normal(kind.shape, dtype=np.float32) for kind in input_kinds(runner)}
            for runner in runners
        ]
        started = time.perf_counter()
        for turn in range(_WARMUP + max(5, runs)):
            if turn >= _WARMUP + 5 and time.perf_counter() - started > budget_s:
                break
            for runner, feed in zip(runners, feeds, strict=True):
                try:
                    runner.session.run(None, feed)
                except Exception as error:  # onnxruntime's exceptions have no common base class
                    raise _cannot_open(error, runner.name) from error
        return [_own_time(Path(runner.session.end_profiling())) for runner in runners]


_WARMUP = 2
_LAYOUT_OPS = ("ReorderInput", "ReorderOutput")
_CUT_OFF = 0.5
"""The profile counts whole microseconds, rounded down: this much is lost on the average."""


def _own_time(profile: Path) -> float:
    """Return the microseconds of a run in a profile."""
    kernels: dict[str, list[float]] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        if event["name"].endswith("_kernel_time") and event["args"]["op_name"] not in _LAYOUT_OPS:
            kernels.setdefault(event["name"], []).append(event["dur"] + _CUT_OFF)
    runs = sorted(map(sum, zip(*(times[_WARMUP:] for times in kernels.values()), strict=True)))
    return statistics.fmean(runs[: (len(runs) + 1) // 2])


def _providers(provider: Literal["cpu", "cuda"]) -> list[Any]:
    # TF32 rounds products to 10 bits: two equal networks would differ by 1e-3.
    return [(_CUDA, {"use_tf32": "0"}), _CPU] if provider == "cuda" else [_CPU]


def _cannot_open(error: Exception, name: str) -> Exception:
    text = first_line(error)
    if type(error).__name__ in {"InvalidProtobuf", "NoSuchFile"}:
        return BadInput(f"{name} is not an ONNX model", why=text)
    return UnsupportedModel(f"ONNX Runtime cannot run {name}", why=text)


def first_line(error: BaseException) -> str:
    """Return an error's message in one line, without ONNX Runtime's tags."""
    text = " ".join(str(error).split())
    while text.startswith("["):
        text = text.partition("]")[2].lstrip(" :0123456789")
    return text[:300] or type(error).__name__


def _dtype(name: str, onnx_type: str) -> str:
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    dtype = _NUMPY_TYPES.get(inner, inner)
    try:
        kind = np.dtype(dtype).kind
    except TypeError:
        kind = "O"
    if inner == "string" or kind not in "fiub":
        raise UnsupportedModel(f"input {name!r} is a {onnx_type}", why="inputs are made for tensors of numbers")
    return dtype


def _check_shape(name: str, shape: Sequence[int | str | None], wanted: Sequence[int]) -> None:
    # ONNX Runtime reports no sizes for an input of unknown rank, as for a number.
    fits = not shape or (
        len(shape) == len(wanted)
        and all(not isinstance(size, int) or size == given for size, given in zip(shape, wanted, strict=True))
    )
    if not fits:
        text = "x".join(str(size) if isinstance(size, int) else "?" for size in shape)
        raise BadInput(
            f"input {name!r} cannot be {'x'.join(map(str, wanted))}",
            why=f"the model says {text}",
            do="change --input-shape",
        )


def _fill(
    shape: Sequence[int | str | None], batch: int, channels: int, size: int, symbols: dict[str, int]
) -> tuple[int, ...]:
    last = shape[-1] if shape else None
    channels_last = isinstance(last, int) and last <= 4
    filled = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            filled.append(dim)
            continue
        is_channel = axis == 1 and len(shape) >= 4 and not channels_last
        value = batch if axis == 0 and len(shape) > 1 else channels if is_channel else size
        # "None" and "?" are how some exporters write "unknown", not a symbol.
        filled.append(symbols.setdefault(dim, value) if dim not in (None, "", "None", "?") else value)
    return tuple(filled)
