"""What MODEL means on the command line: a file, a built-in architecture, a library's network, or a factory.

Owns the look-up, the example inputs and the messages when nothing fits. Imports torch only once it is
known that the model is a module, so that ONNX files are handled without it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.errors import BadInput, PrunecError
from prunec.files import check_name, kind_of_folder
from prunec.lookup.libraries import LIBRARIES, build_from
from prunec.runtime.model_inputs import name_shapes
from prunec.runtime.sessions import first_line

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
"""Input shapes by name; "" is the next input without one."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file, not yet read."""

    name: str
    path: Path
    input_shapes: Shapes


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A module and positional arguments that it takes."""

    name: str
    module: torch.nn.Module
    example_inputs: tuple[Any, ...]


def resolve(spec: str, shapes: Shapes | None = None, *, weights: Path | None = None) -> OnnxModel | TorchModel:
    """Find the model that ``spec`` names.

    Tried in this order: an existing file; ``torchvision:NAME`` and ``timm:NAME`` (fresh weights, nothing
    is downloaded); ``package.module:factory`` or ``file.py:factory``; a built-in architecture. A factory returns a
    module, or a module and the tuple of its example inputs.

    Args:
        spec: what the user wrote.
        shapes: of the inputs; needed where the model does not say.
        weights: a state dict (.safetensors, or .pt/.pth without code in it) for a module.

    Raises:
        BadInput: nothing fits, the user's code failed, or a shape or the weights do not fit.
        MissingDependency: the library named before the colon is not installed.
    """
    shapes = shapes or {}
    path = Path(spec)
    if path.is_file() or path.suffix.lower() == ".onnx":
        if not path.is_file():
            raise BadInput(f"there is no file {spec}", do="check the path")
        if weights is not None:
            raise BadInput("an ONNX file has its own weights", do="leave --weights out")
        check_name(path)
        return OnnxModel(spec, path, shapes)
    module, default = _module(spec)
    if weights is not None:
        load_weights(module, weights)
    return TorchModel(spec, module, _example_inputs(spec, module, default, shapes))


def load_weights(module: torch.nn.Module, path: str | Path) -> None:
    """Load a state dict into ``module``, every key matched.

    A prefix "module." (left by DataParallel) is dropped, and a checkpoint's "state_dict" or "model" entry is found.

    Raises:
        BadInput: the file is missing, holds something else, or does not fit the module.
    """
    state = _read_state(Path(path))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise BadInput(
            f"the weights {path} do not fit the network",
            why=" ".join(lines)[:400] or first_line(error),
            do="give the weights of this architecture",
        ) from error


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read ``NAME:1x3x224x224`` or ``1x3x224x224``, each given once.

    Raises:
        BadInput: not of that form, a size below 1, or a name given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        # Names may hold colons ("input:0"); the sizes never do.
        name, _, sizes = text.rpartition(":")
        parts = sizes.lower().replace(",", "x").split("x")
        if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
            raise BadInput(
                f"{text!r} is not an input shape", do="write NAME:1x3x224x224, or 1x3x224x224 for the only input"
            )
        if name in shapes:
            raise BadInput(f"two shapes are given for input {name or '(unnamed)'}", do="name each: NAME:1x3x224x224")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def _module(spec: str) -> tuple[torch.nn.Module, Any]:
    """Return the module and what it says of its inputs: example inputs, a (C, H, W) shape, or None."""
    prefix, colon, name = spec.rpartition(":")
    if colon and prefix in LIBRARIES:
        return build_from(prefix, name)
    if colon:
        return _from_factory(spec, prefix, name)
    from prunec.models import ARCHITECTURES, find

    architecture = find(spec)
    if architecture is not None:
        return architecture.build(), architecture.input_shape
    if Path(spec).is_dir():
        what, do = kind_of_folder(Path(spec))
        raise BadInput(f"{spec} is not a model", why=f"it is {what}", do=do)
    near = difflib.get_close_matches(spec, ARCHITECTURES, n=3, cutoff=0.5)
    raise BadInput(
        f"there is no model {spec!r}",
        why="it is neither a file nor a built-in architecture",
        do=f"did you mean {' or '.join(near)}?"
        if near
        else "`prunec archs` lists the architectures; yours: package.module:factory",
    )


def _from_factory(spec: str, module_name: str, attribute: str) -> tuple[torch.nn.Module, Any]:
    import torch

    target: Any = _user_module(spec, module_name)
    for part in attribute.split("."):
        if not hasattr(target, part):
            near = difflib.get_close_matches(part, dir(target), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"check the name after the colon in {spec!r}"
            raise BadInput(f"{module_name} has no {part!r}", do=hint)
        target = getattr(target, part)
    made = target if isinstance(target, torch.nn.Module) else _call(spec, target)
    inputs = None
    if isinstance(made, tuple) and len(made) == 2:
        made, inputs = made
        inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    if not isinstance(made, torch.nn.Module):
        raise BadInput(
            f"{spec} gives a {type(made).__name__}, not a torch.nn.Module",
            do="return a module, or a module and the tuple of its example inputs",
        )
    return made, inputs


def _user_module(spec: str, name: str) -> Any:
    """Import the user's module by name or file, from the current directory too."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        found = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module
        found.loader.exec_module(module)
    except PrunecError:
        raise
    except (Exception, SystemExit) as error:  # the user's code raises anything, and scripts exit
        why = first_line(error) if isinstance(error, ImportError | FileNotFoundError) else _told(error)
        raise BadInput(
            f"cannot import {name!r}",
            why=why,
            do=f"check the part before the colon in {spec!r}; --debug shows where it failed",
        ) from error
    return module


def _call(spec: str, factory: Callable[[], Any]) -> Any:
    if not callable(factory):
        raise BadInput(f"{spec} is a {type(factory).__name__}", do="name a function or class that takes no arguments")
    try:
        return factory()
    except PrunecError:
        raise
    except (Exception, SystemExit) as error:  # the user's code raises anything
        raise BadInput(
            f"{spec} failed", why=_told(error), do="it is called without arguments; --debug shows where it failed"
        ) from error


def _example_inputs(spec: str, module: torch.nn.Module, default: Any, shapes: Shapes) -> tuple[Any, ...]:
    """Return float32 zeros of the user's shapes; what the model says of itself stands where the user says nothing."""
    import torch

    examples: tuple[Any, ...] = ()
    if default is not None:
        is_shape = all(isinstance(size, int) for size in default)
        examples = (torch.zeros(1, *default),) if is_shape else tuple(default)
    if not shapes:
        if not examples:
            raise BadInput(f"the input shape of {spec} is not known", do="give it: --input-shape 1x3x224x224")
        return examples
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, item in inspect.signature(module.forward).parameters.items() if item.kind in kinds]
    # Unnamed shapes stand for the leading inputs of a forward(*inputs).
    given = name_shapes(names or ["input"], shapes)
    count = max(len(examples), 1 + max((names or ["input"]).index(name) for name in given))
    inputs = list(examples) + [None] * (count - len(examples))
    for index, name in enumerate((names or ["input"])[:count]):
        if name in given:
            dtype = inputs[index].dtype if isinstance(inputs[index], torch.Tensor) else torch.float32
            inputs[index] = torch.zeros(given[name], dtype=dtype)
        elif inputs[index] is None:
            raise BadInput(f"the shape of input {name!r} is not known", do=f"add --input-shape {name}:1x3x224x224")
    return tuple(inputs)


def _read_state(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise BadInput(f"there is no file {path}", do="check the path of --weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its own words advise to run what the file holds
        raise BadInput(
            f"cannot read the weights {path}",
            why="it is not what torch.save writes, or holds more than tensors: a whole module, for example",
            do="save module.state_dict(), as .safetensors or .pt",
        ) from error
    except Exception as error:  # unpickling a damaged or foreign file raises anything
        raise BadInput(
            f"cannot read the weights {path}",
            why=first_line(error),
            do="give a state dict, saved as .safetensors or .pt",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadInput(f"{path} does not hold a state dict", do="save module.state_dict()")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
