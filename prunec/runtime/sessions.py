"""ONNX Runtime sessions: opening them quietly, on the provider that really works.

Owns everything that depends on ONNX Runtime's habits. What a model takes is model_inputs.py's, how long it takes
prunec/timing/latency.py's, what is compared prunec/check/validate.py's.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prunec.errors import BadInput, UnsupportedModel
from prunec.files import check_name
from prunec.ir.arrays import Array
from prunec.runtime.probes import Feed

ProviderName = Literal["auto", "cpu", "cuda"]

Model = str | Path | bytes
"""A file, or a serialised ModelProto."""

_MAPPED_BYTES = 2**27
"""ONNX Runtime holds the weights of a file three times and more while it opens it; from this size on it is given the
weights as references into the file (external data), which it maps into memory."""

_CPU = "CPUExecutionProvider"

_CUDA = "CUDAExecutionProvider"


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
    path = None if isinstance(model, bytes) else Path(model)
    mapped = None if path is None else _weights_left_out(path)
    with quiet():
        if provider == "cuda":
            _load_cuda()
        if path is not None and mapped is not None:
            options.add_session_config_entry(_WEIGHTS_IN, str(path.absolute().parent))
            with contextlib.suppress(Exception):  # no ONNX model, or weights where it takes none: as it is, then
                return Runner(name, ort.InferenceSession(mapped, options, providers=_providers(provider)))
        try:
            session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=_providers(provider)
            )
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise cannot_open(error, name) from error
    return Runner(name, session)


def _load_cuda() -> None:
    """Load CUDA's and cuDNN's libraries from pip's packages, where a system without CUDA does not look."""
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):  # from ONNX Runtime 1.21 on
        with contextlib.suppress(Exception):  # the session says what is missing, and falls back
            ort.preload_dlls()


_WEIGHTS_IN = "session.model_external_initializers_file_folder_path"


def _weights_left_out(path: Path) -> bytes | None:
    """Return a large file's message with its weights as references into the file; None for other files."""
    if path.stat().st_size < _MAPPED_BYTES:
        return None
    from prunec.frontends.onnx.loading.load import load_onnx

    try:
        message: bytes = load_onnx(path).model.SerializeToString()
    except BadInput:  # ONNX Runtime's own format, or no model: it says so itself
        return None
    return message


def open_small(model: bytes) -> Any:
    """Open a session for one run of one node: no threads of its own, no memory that it keeps.

    Raises:
        Exception: whatever ONNX Runtime raises.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with quiet():
        return ort.InferenceSession(model, options, providers=[_CPU])


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


def _providers(provider: Literal["cpu", "cuda"]) -> list[Any]:
    # TF32 rounds products to 10 bits: two equal networks would differ by 1e-3.
    return [(_CUDA, {"use_tf32": "0"}), _CPU] if provider == "cuda" else [_CPU]


def cannot_open(error: Exception, name: str) -> Exception:
    """Return the error to raise where ONNX Runtime did not open a model, by what it said."""
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
