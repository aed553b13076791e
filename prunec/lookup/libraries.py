"""Networks of torchvision and timm by name: ``torchvision:resnet50``, ``timm:resnet50.a1_in1k``.

Owns the look-up there, what each library needs to be imported here, and the messages when nothing fits. Nothing is
downloaded: weights are fresh, or come from a file (prunec/lookup/resolve.py).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prunec.errors import BadInput, MissingDependency

if TYPE_CHECKING:
    from torch import nn

ImageShape = tuple[int, ...]
"""(C, H, W)."""


def build_from(library: str, name: str) -> tuple[nn.Module, ImageShape]:
    """Build a library's network with fresh weights; also return the image shape that it was designed for.

    Args:
        library: a key of ``LIBRARIES``.
        name: as the library spells it; timm's may end in the tag of a weight file, which decides the image shape.

    Raises:
        BadInput: the library has no such network; the message names the nearest.
        MissingDependency: the library is not installed.
    """
    if importlib.util.find_spec(library) is None:
        raise _missing(library)
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()  # timm imports it too
    return LIBRARIES[library](name)


def import_torchvision() -> Any:
    """Import torchvision, also where its compiled operators do not match this torch.

    Raises:
        MissingDependency: it is not installed.
    """
    import torch

    if importlib.util.find_spec("torchvision") is None:
        raise _missing("torchvision")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    # Without its compiled library torchvision describes operators that nobody has declared.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)
    return importlib.import_module("torchvision")


# A Library takes its declarations back when it is collected, so it lives as long as the process.
_DECLARED: list[Any] = []


def _from_timm(name: str) -> tuple[nn.Module, ImageShape]:
    timm = importlib.import_module("timm")
    known = [*timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        raise _unknown("timm", name, known)
    module = timm.create_model(name, pretrained=False)
    return module, tuple(module.pretrained_cfg.get("input_size", (3, 224, 224)))


def _from_torchvision(name: str) -> tuple[nn.Module, ImageShape]:
    models = importlib.import_module("torchvision.models")
    known = models.list_models()
    if name not in known:
        raise _unknown("torchvision", name, known)
    if name not in ("googlenet", "inception_v3"):
        return models.get_model(name, weights=None), (3, 224, 224)
    from prunec.models.layers import rename_when_loading

    # Without the auxiliary heads, whose outputs would come as a tuple in training; published files hold them still.
    module = models.get_model(name, weights=None, init_weights=False, aux_logits=False)
    heads = ("aux1.", "aux2.", "AuxLogits.")
    rename_when_loading(module, lambda key: None if key.startswith(heads) else key)
    return module, (3, 299, 299) if name == "inception_v3" else (3, 224, 224)


LIBRARIES: dict[str, Callable[[str], tuple[nn.Module, ImageShape]]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def _missing(library: str) -> MissingDependency:
    return MissingDependency(f"{library} is not installed", do="pip install 'prunec[real]'")


def _unknown(library: str, name: str, known: Sequence[str]) -> BadInput:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return BadInput(
        f"{library} has no model {name!r}", do=f"did you mean {' or '.join(near)}?" if near else "check the name"
    )
