"""An ONNX file's network, ready to be trained: imported, its interface remembered, checked against the file.

Owns what training needs to know about the file besides the module. importer/module.py imports it,
and restore.py puts folded BatchNorms back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunec.check.comparison import gap
from prunec.errors import UnsupportedModel
from prunec.frontends.onnx.loading.load import load_onnx
from prunec.frontends.onnx.sizes.view import type_shape
from prunec.importer.module import to_module
from prunec.runtime import sessions
from prunec.runtime.modules import evaluating
from prunec.training.data.augment import Pipeline
from prunec.training.data.batches import sampled_batches
from prunec.training.data.sets import ImageSet
from prunec.training.learning.batchnorm import enough_batches
from prunec.training.settings.config import RunConfig
from prunec.training.settings.restore import restore_batchnorm

_TOLERANCE = 1e-4
_NOISE = 1e-6
"""An absolute difference that no output is held to."""
_CHECKED_IMAGES = 4
_OTHER_SIZE = 32
"""How much larger the second size is, at which open axes are tried."""


@dataclass(frozen=True, slots=True)
class Interface:
    """The names of a network's input and output in the file, and their open axes: name -> axis -> symbol.

    ``open_axes`` None leaves it to the exporter: the batch is open if the network allows it.
    """

    input_name: str = "images"
    output_name: str = "scores"
    open_axes: Mapping[str, Mapping[int, str]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class OnnxNetwork:
    """A file's network.

    Args:
        module: computes what the file does; if the file ends in probabilities, it returns their logarithms during
            training.
        image_shape: (C, H, W).
        interface: the file's.
        path: the file.
    """

    module: fx.GraphModule
    image_shape: tuple[int, int, int]
    interface: Interface
    path: Path


class Probabilities(nn.Module):
    """Softmax; in training mode its logarithm, which the cross-entropy needs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, scores: Tensor) -> Tensor:
        """Return probabilities, or their logarithms, along ``dim``."""
        return F.log_softmax(scores, self.dim) if self.training else F.softmax(scores, self.dim)


def load_network(path: Path, input_shape: Sequence[int] = ()) -> OnnxNetwork:
    """Import a file for training.

    Args:
        path: the .onnx file.
        input_shape: (C, H, W), if the file leaves sizes open.

    Raises:
        BadInput: no such file, or open sizes that are not given.
        UnsupportedModel: it takes something other than one image, or has an op that cannot be trained.
    """
    source = load_onnx(path)
    shapes = {"": (1, *input_shape)} if input_shape else {}
    imported = to_module(source, shapes)
    if len(imported.input_shapes) != 1 or len(imported.input_shapes[0]) != 3 or len(imported.output_names) != 1:
        raise UnsupportedModel(
            f"{path} does not take one image and give one output",
            why=f"its inputs: {', '.join(imported.input_names)}; its outputs: {', '.join(imported.output_names)}",
            do="train-prune feeds float32[N, C, H, W] images; prunec prune works on any file",
        )
    channels, height, width = imported.input_shapes[0]
    named = {
        value.name: type_shape(value.type) or () for value in (*source.model.graph.input, *source.model.graph.output)
    }
    axes = {
        name: {
            axis: str(size or f"{name}_{axis}") for axis, size in enumerate(named[name]) if not isinstance(size, int)
        }
        for name in (imported.input_names[0], imported.output_names[0])
    }
    interface = Interface(imported.input_names[0], imported.output_names[0], MappingProxyType(axes))
    _check_batch(imported.module, (channels, height, width), path)
    network = OnnxNetwork(_ending_in_logs(imported.module), (channels, height, width), interface, path)
    return network if _follows_size(network) else _with_fixed_size(network)


def prepared_network(
    network: OnnxNetwork, data: ImageSet, images: Pipeline, config: RunConfig, tell: Callable[[str], None]
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Check the network on training images, and put folded BatchNorms back if asked to.

    Args:
        tell: called with a sentence before anything that may take long.

    Returns:
        the module to train, and sentences for a person.

    Raises:
        UnsupportedModel: the module does not compute what the file does.
    """
    first = next(sampled_batches(data.train, images, _CHECKED_IMAGES, 1, config.seed))[0]
    check_agreement(network.module, network.path, network.interface, first)
    if config.restore_batchnorm == "never":
        return network.module, ()
    most = enough_batches(config.batch_size, data.image_shape)
    num_images = min(len(data.train), most * config.batch_size)
    tell(f"measuring the statistics of layers without a BatchNorm on {num_images} images, to put one behind them")
    batches = sampled_batches(data.train, images, config.batch_size, most, config.seed)
    module, names = restore_batchnorm(network.module, (inputs for inputs, _ in batches), config.keep)
    if not names:
        return module, ()
    check_agreement(module, network.path, network.interface, first)
    return module, (f"put BatchNorms back behind {len(names)} layers that had none, with the statistics of the data",)


def check_agreement(network: fx.GraphModule, path: Path, interface: Interface, images: Tensor) -> None:
    """Compare a network with the file on images, one at a time, in eval mode.

    Raises:
        UnsupportedModel: they differ, so that another network than the file's would be trained.
    """
    runner = sessions.open_runner(path, str(path), "cpu", optimise=False)
    device = next(network.parameters()).device
    with evaluating(network), torch.no_grad():
        batch = next(shape[0] for _, shape, _ in runner.inputs)
        for image in images.split(1):
            repeated = image.expand(batch if isinstance(batch, int) else 1, *image.shape[1:])
            expected = runner({interface.input_name: repeated.cpu().numpy()})[0]
            found = network(repeated.to(device)).cpu().numpy()
            found_gap = gap(expected, found) if expected.shape == found.shape else None
            if found_gap is None or (found_gap.over() > _TOLERANCE and found_gap.absolute > _NOISE):
                raise UnsupportedModel(
                    f"the torch form of {path} differs from the file",
                    why=f"shapes {expected.shape} and {found.shape}"
                    if found_gap is None
                    else f"by {found_gap.over():.2g} (relative) on an image",
                    do="please report this with the model; train the network in its own framework",
                )


def _check_batch(module: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Find out whether the network takes more than one image at a time."""
    try:
        with torch.no_grad():
            single, double = module(torch.zeros(1, *shape)), module(torch.zeros(2, *shape))
        fits = double.shape[0] == 2 * single.shape[0]
        why = f"one image gives {tuple(single.shape)}, two give {tuple(double.shape)}"
    except RuntimeError as error:
        fits, why = False, sessions.first_line(error)
    if not fits:
        raise UnsupportedModel(
            f"{path} cannot be trained: its batch size is written into the graph",
            why=why,
            do="export it again with an open batch axis",
        )


def _ending_in_logs(module: fx.GraphModule) -> fx.GraphModule:
    """Replace a softmax over the classes at the end."""
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    last = output.args[0]
    if not isinstance(last, fx.Node) or last.op != "call_function" or last.target is not F.softmax:
        return module
    module.add_submodule("probabilities", Probabilities(int(str(last.kwargs["dim"]))))
    with module.graph.inserting_after(last):
        made = module.graph.call_module("probabilities", (last.args[0],))
    last.replace_all_uses_with(made)
    module.graph.erase_node(last)
    module.recompile()
    return module


def _follows_size(network: OnnxNetwork) -> bool:
    """Tell whether the module accepts the same other sizes as the file, and agrees with it there."""
    axes = (network.interface.open_axes or {}).get(network.interface.input_name, {})
    if not set(axes) & {2, 3}:
        return True
    sizes = [size + _OTHER_SIZE * (axis in axes) for axis, size in enumerate(network.image_shape, start=1)]
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, *sizes)).astype(np.float32))
    try:
        check_agreement(network.module, network.path, network.interface, images)
    except (UnsupportedModel, RuntimeError):
        return False
    return True


def _with_fixed_size(network: OnnxNetwork) -> OnnxNetwork:
    """Return the network with only the batch open, because its other sizes are fixed."""
    axes = {
        name: {axis: symbol for axis, symbol in found.items() if axis == 0}
        for name, found in (network.interface.open_axes or {}).items()
    }
    interface = Interface(network.interface.input_name, network.interface.output_name, MappingProxyType(axes))
    return OnnxNetwork(network.module, network.image_shape, interface, network.path)
