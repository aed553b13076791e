"""What is installed here and whether it really works, for ``prunec doctor``.

Owns the list of packages and the trial runs. A provider counts as working only if a model runs on it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from prunec.report.findings import plain
from prunec.runtime import sessions

_PACKAGES = (
    "prunec", "torch", "onnx", "onnx-graphsurgeon", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "networkx",
    "safetensors", "scikit-learn", "pillow", "onnxscript", "torchvision", "timm",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProviderState:
    """An execution provider of ONNX Runtime: whether a model ran on it, and if not, why."""

    name: str
    works: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What ``examine`` found.

    Args:
        python, platform: as the interpreter calls them.
        cpus: cores that this process may use.
        packages: version by package; "" where it is not installed.
        torch_devices: what PyTorch can train on.
        cuda_devices: what the CUDA driver counts.
        providers: of ONNX Runtime.
        notes: advice.
    """

    python: str
    platform: str
    cpus: int
    packages: dict[str, str]
    torch_devices: tuple[str, ...]
    cuda_devices: int
    providers: tuple[ProviderState, ...]
    notes: tuple[str, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """Return the findings as JSON data."""
        document = plain(self)
        assert isinstance(document, dict)
        return document


def examine() -> Findings:
    """Look at this machine; a one-node model is run on each provider."""
    packages = {name: _version(name) for name in _PACKAGES}
    providers = (_try_provider("cpu"), _try_provider("cuda"))
    return Findings(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        packages=packages,
        torch_devices=_torch_devices(),
        cuda_devices=sessions.num_cuda_devices(),
        providers=providers,
        notes=_notes(packages),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _torch_devices() -> tuple[str, ...]:
    if importlib.util.find_spec("torch") is None:
        return ()
    import torch

    names = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    return ("cpu", *names)


def _try_provider(name: sessions.ProviderName) -> ProviderState:
    """Run x + x on a provider; what ran is read from the session."""
    import numpy as np
    from onnx import TensorProto, helper

    chosen = sessions.choose_provider(name)
    if chosen.name != name:
        return ProviderState(name, works=False, note=chosen.note.partition(":")[0])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "trial", [x], [y])
    # Old IR and opset versions: any ONNX Runtime takes them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    runner = sessions.open_runner(model.SerializeToString(), "the trial model", chosen.name, optimise=True)
    if runner.provider != name:
        return ProviderState(
            name, works=False, note="a device is there, but the provider's libraries could not be loaded"
        )
    values = np.ones(4, dtype=np.float32)
    works = bool((runner({"x": values})[0] == 2).all())
    return ProviderState(name, works=works, note="" if works else "it ran and gave a wrong result")


def _notes(packages: dict[str, str]) -> tuple[str, ...]:
    notes = []
    if not packages["scikit-learn"]:
        notes.append("the embedded data sets need scikit-learn: pip install 'prunec[data]'")
    if not packages["onnxscript"]:
        notes.append("the second ONNX exporter needs onnxscript: pip install 'prunec[export]'")
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        notes.append("onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall one")
    return tuple(notes)
