"""What a user's data show about a network, before anything is planned.

Chooses what a pruning needs to know from the data; prunec.data finds it. Modules that only data need are imported
in the functions that use them: without data, a small file is pruned in little more time than imports take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.check.clock import Tell
from prunec.passes.channels import channels
from prunec.passes.selection.criteria import check_has_data, needs
from prunec.pipeline.options import Options
from prunec.runtime import model_inputs, sessions

if TYPE_CHECKING:
    from torch import fx

    from prunec.data.calibration import Calibration, Observed
    from prunec.data.samples import Samples
    from prunec.fitting.reconstruct import Reconstruction
    from prunec.frontends.fx.traced import Traced
    from prunec.frontends.onnx.frontend import TracedOnnx
    from prunec.pipeline.data_report import Runs

Saliency = Mapping[str, np.ndarray[Any, Any]]
"""Parameter name -> the importance of each of its elements."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the data show.

    Args:
        given: inputs to compare the result on, if the user named some.
        samples: the calibration data.
        observed: which channels are constant on it.
        saliency: how much each parameter matters on it, if the criterion needs that.
        fit: fits the remaining channels to the data, if a criterion removes some; the samples that it holds out are
            used by nothing else.
    """

    given: Samples | None = None
    samples: Samples | None = None
    observed: Observed | None = None
    saliency: Saliency | None = None
    fit: Reconstruction | None = None


def module_evidence(
    traced: Traced,
    options: Options,
    calibration: Calibration | None,
    inputs: str | Path | None,
    saliency: Saliency | None,
    progress: Tell | None = None,
) -> Evidence:
    """Look at a module on the user's data.

    Args:
        saliency: used instead of the data's.
        progress: called with what is being done.
    """
    from prunec.data.observing import module_slots, observe_module
    from prunec.data.sample_files import read_samples

    given = read_samples(inputs, module_slots(traced)) if inputs is not None else None
    if calibration is None:
        check_has_data(options.criterion, data=False, saliency=saliency is not None)
        return Evidence(given, saliency=saliency)
    samples = _module_samples(traced, calibration)
    fit = _module_fit(traced, samples, calibration, options, progress)
    looked, observed = samples if fit is None else fit.data, None
    if needs(options.criterion) != "data":
        observed = observe_module(traced, channels(traced.graph, options.keep), looked, calibration.tolerance)
    if needs(options.criterion) == "gradients" and saliency is None:
        from prunec.data.saliency import module_saliency

        saliency = module_saliency(traced, looked)
    return Evidence(given, samples, observed, saliency, fit)


def _module_samples(traced: Traced, calibration: Calibration) -> Samples:
    """List the samples for a module in batches that it accepts: a forward that loops over a batch takes one size."""
    from prunec.data.observing import module_slots
    from prunec.data.sample_files import read_samples
    from prunec.data.samples import first_that_runs
    from prunec.fitting.stages_module import runner

    read = partial(read_samples, calibration.data, normalise=calibration.normalise)
    versions = (read(module_slots(traced, fixed=fixed)) for fixed in (False, True))
    return first_that_runs(versions, runner(traced, traced.module), "the network")


def _module_fit(
    traced: Traced, samples: Samples, calibration: Calibration, options: Options, progress: Tell | None
) -> Reconstruction | None:
    """Return the object that fits a module to data; None if nothing is to be fitted."""
    if options.criterion is None:
        return None
    from prunec.fitting.fit_data import fit_data
    from prunec.fitting.reconstruct import Reconstruction
    from prunec.fitting.stages_module import OpenedModule, runner
    from prunec.pipeline.data_report import labelled

    run = runner(traced, traced.module)
    split = fit_data(samples, run, labelled(calibration, run))
    opened, memory, orders = OpenedModule(traced, split.fitted), calibration.memory, calibration.orders
    return Reconstruction(opened, split, memory, progress or _silent, orders=orders)


def module_runs(traced: Traced, pruned: fx.GraphModule) -> Runs:
    """Return functions that run the original and the pruned module on samples."""
    from prunec.fitting.stages_module import runner
    from prunec.pipeline.data_report import Runs

    return Runs(runner(traced, traced.module), runner(traced, pruned))


def onnx_evidence(
    path: str | Path,
    traced: TracedOnnx,
    options: Options,
    calibration: Calibration | None,
    inputs: str | Path | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    progress: Tell | None = None,
) -> Evidence:
    """Look at an ONNX file on the user's data."""
    given = onnx_samples(path, inputs, input_shapes) if inputs is not None else None
    if calibration is None:
        return Evidence(given)
    from prunec.data.observing import observe_onnx

    samples = onnx_samples(path, calibration.data, input_shapes, calibration.normalise)
    fit = None if options.criterion is None else _onnx_fit(traced, path, samples, calibration, progress)
    looked, observed, saliency = samples if fit is None else fit.data, None, None
    if needs(options.criterion) != "data":
        observed = observe_onnx(traced, channels(traced.graph, options.keep), looked, calibration.tolerance)
    if needs(options.criterion) == "gradients":
        from prunec.data.saliency import onnx_saliency

        saliency = onnx_saliency(traced, looked)
    return Evidence(given, samples, observed, saliency, fit)


def _onnx_fit(
    traced: TracedOnnx, path: str | Path, samples: Samples, calibration: Calibration, progress: Tell | None
) -> Reconstruction:
    """Return the object that fits a file to data."""
    from prunec.fitting.fit_data import fit_data
    from prunec.fitting.opened import OpenedOnnx
    from prunec.fitting.reconstruct import Reconstruction
    from prunec.pipeline.data_report import labelled

    runner = sessions.open_runner(path, str(path), "cpu", optimise=False)
    split = fit_data(samples, runner, labelled(calibration, runner))
    opened = OpenedOnnx(traced, split.fitted, calibration.memory // 2)
    return Reconstruction(opened, split, calibration.memory, progress or _silent, orders=calibration.orders)


def onnx_runs(path: str | Path, pruned: Path) -> Runs:
    """Return functions that run the original and the pruned file on samples."""
    from prunec.pipeline.data_report import Runs

    first, second = (sessions.open_runner(file, str(file), "cpu", optimise=False) for file in (path, pruned))
    return Runs(first, second, first.outputs)


def _silent(_: str) -> None:
    """Tell nothing."""


def onnx_samples(
    path: str | Path, data: str | Path, input_shapes: Mapping[str, Sequence[int]] | None, normalise: str | None = None
) -> Samples:
    """List the samples of a folder for an ONNX file, in batches that it accepts."""
    from prunec.data.sample_files import read_samples

    runner = sessions.open_runner(path, str(path), "cpu", optimise=False)
    samples = read_samples(data, model_inputs.slots(runner, input_shapes), normalise=normalise)
    return samples.that_run(runner, str(path))
