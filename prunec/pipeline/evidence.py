"""What a user's data show of a network, before anything is planned.

Owns which looks at the data a pruning asks for; how each is made is prunec.data's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.data.calibration import Calibration, Observed
from prunec.data.observing import module_slots, observe_module, observe_onnx
from prunec.data.sample_files import read_samples
from prunec.data.samples import Samples
from prunec.errors import BadInput
from prunec.passes.channels import channels
from prunec.pipeline.options import Options
from prunec.runtime import sessions

if TYPE_CHECKING:
    from prunec.frontends.fx.frontend import Traced
    from prunec.frontends.onnx.frontend import TracedOnnx

Saliency = Mapping[str, np.ndarray[Any, Any]]
"""Parameter name -> the importance of each of its elements."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What data show.

    Args:
        given: inputs to compare the result on, where the user named some.
        samples: the calibration data.
        observed: which channels are constant on it.
        saliency: how much each parameter matters on it, where the criterion asks.
    """

    given: Samples | None = None
    samples: Samples | None = None
    observed: Observed | None = None
    saliency: Saliency | None = None


def module_evidence(
    traced: Traced,
    options: Options,
    calibration: Calibration | None,
    inputs: str | Path | None,
    saliency: Saliency | None,
) -> Evidence:
    """Look at a module on the user's data.

    Args:
        saliency: taken instead of what the data would give.
    """
    given = read_samples(inputs, module_slots(traced)) if inputs is not None else None
    if calibration is None:
        if options.criterion == "taylor" and saliency is None:
            raise no_gradients()
        return Evidence(given, saliency=saliency)
    samples = read_samples(calibration.data, module_slots(traced), normalise=calibration.normalise)
    observed = observe_module(traced, channels(traced.graph, options.keep), samples, calibration.tolerance)
    if options.criterion == "taylor" and saliency is None:
        from prunec.data.saliency import module_saliency

        saliency = module_saliency(traced, samples)
    return Evidence(given, samples, observed, saliency)


def onnx_evidence(
    path: str | Path,
    traced: TracedOnnx,
    options: Options,
    calibration: Calibration | None,
    inputs: str | Path | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> Evidence:
    """Look at an ONNX file on the user's data."""
    given = onnx_samples(path, inputs, input_shapes) if inputs is not None else None
    if calibration is None:
        return Evidence(given)
    samples = onnx_samples(path, calibration.data, input_shapes, calibration.normalise)
    observed = observe_onnx(traced, channels(traced.graph, options.keep), samples, calibration.tolerance)
    if options.criterion != "taylor":
        return Evidence(given, samples, observed)
    from prunec.data.saliency import onnx_saliency

    return Evidence(given, samples, observed, onnx_saliency(traced, samples))


def onnx_samples(
    path: str | Path, data: str | Path, input_shapes: Mapping[str, Sequence[int]] | None, normalise: str | None = None
) -> Samples:
    """List the samples of a folder for an ONNX file, in batches that it takes."""
    runner = sessions.open_runner(path, str(path), "cpu", optimise=False)
    samples = read_samples(data, sessions.slots(runner, input_shapes), normalise=normalise)
    return samples.that_run(runner, str(path))


def no_gradients() -> BadInput:
    """Return what is said where ``taylor`` has no data."""
    return BadInput(
        "the taylor criterion needs gradients, and these need data",
        do="give inputs of the network (--calibrate FOLDER), or use l1, gamma or random",
    )
