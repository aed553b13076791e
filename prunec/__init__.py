"""prunec: a graph-surgery compiler for channel pruning.

Owns the list of what is public; each name is loaded when it is first used, so that importing prunec
costs nothing and an ONNX file can be handled without torch. Read docs/architecture.md next.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunec.api import analyze_module, analyze_onnx, prune_module, prune_onnx
    from prunec.check.validate import validate_onnx
    from prunec.data.calibration import Calibration
    from prunec.errors import PrunecError
    from prunec.ir.plan import PrunePlan
    from prunec.pipeline.apply_onnx import apply_plan_onnx
    from prunec.pipeline.export import export_onnx
    from prunec.toolchain.models import PrunedModel, analyze_model, apply_plan, dependency_graph, prune_model
    from prunec.training import sparsify

__version__ = "0.2.0"

__all__ = [
    "Calibration",
    "PrunePlan",
    "PrunecError",
    "PrunedModel",
    "analyze_model",
    "analyze_module",
    "analyze_onnx",
    "apply_plan",
    "apply_plan_onnx",
    "dependency_graph",
    "export_onnx",
    "prune_model",
    "prune_module",
    "prune_onnx",
    "sparsify",
    "validate_onnx",
]

_HOME = MappingProxyType(
    {
        "Calibration": "prunec.data.calibration",
        "PrunePlan": "prunec.ir.plan",
        "PrunecError": "prunec.errors",
        "PrunedModel": "prunec.toolchain.models",
        "analyze_model": "prunec.toolchain.models",
        "analyze_module": "prunec.api",
        "analyze_onnx": "prunec.api",
        "apply_plan": "prunec.toolchain.models",
        "apply_plan_onnx": "prunec.pipeline.apply_onnx",
        "dependency_graph": "prunec.toolchain.models",
        "export_onnx": "prunec.pipeline.export",
        "prune_model": "prunec.toolchain.models",
        "prune_module": "prunec.api",
        "prune_onnx": "prunec.api",
        "sparsify": "prunec.training",
        "validate_onnx": "prunec.check.validate",
    }
)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'prunec' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
