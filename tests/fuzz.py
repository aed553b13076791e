"""Many random networks, pruned and compared: make fuzz N=1000 (a developer's tool; the test suite draws fewer).

    python tests/fuzz.py 1000 [--first SEED] [--no-onnx] [--shrink]

Each seed is a network of modules/strategies.py, half of them with movements by hand and weights read twice
(modules/handmade.py). For each: exact removal computes the same function, a random plan equals the masked network, its
ONNX export is pruned exactly, and no analysis takes longer than a minute. The seeds that fail are printed with the
network; --shrink lets hypothesis look for a smaller one.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import onnx
import torch
from assertions import assert_same_function, in_time, outputs_of, relative_error
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from masking import error_of_a_plan
from modules.strategies import RandomNet, Spec, batch_of, build, specs
from onnx_models.nets import export_as_it_is, prune, random_feeds, run
from torch import Tensor

from prunec.api import prune_module
from prunec.backends.onnx.save import model_bytes
from prunec.frontends.onnx.loading.load import OnnxSource
from prunec.importer.module import to_module
from prunec.ir.edits import CannotRewrite
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module

TIGHT, SINGLE = 1e-9, 1e-3
"""Relative errors allowed in float64, and in float32 before the comparison is made again in float64."""

SECONDS = 60
"""The longest that one network may take."""

DRAWN = st.tuples(st.booleans().flatmap(lambda wild: specs(wild=wild)), st.sampled_from([0.3, 0.6, 0.95]))


def check(spec: Spec, zeros: float, folder: Path | None) -> None:
    """Raise where a network is not pruned as it should be; ``folder`` is for its ONNX twin, None leaves that out."""
    with in_time(SECONDS):
        net, batch = build(spec, zeros), batch_of(spec)
        result = prune_module(net, (batch,), validate=False)
        assert_same_function(net, result.module, batch, tolerance=TIGHT)
        assert result.plan.exact, "an exact removal that says it is not"
        _check_any_plan(net, spec, batch)
        if folder is not None:
            _check_file(net.float(), spec, batch.float(), folder / "net.onnx")


def _check_any_plan(net: RandomNet, spec: Spec, batch: Tensor) -> None:
    traced = read_module(net, (batch,))
    facts = gather_facts(traced.graph)
    try:
        error, _ = error_of_a_plan(traced, facts, batch, spec.seed)
    except CannotRewrite:
        return  # what a backend cannot write is pinned and planned anew
    assert error <= TIGHT, f"a random plan differs from the masked network by {error:.2e}"


def _check_file(net: RandomNet, spec: Spec, batch: Tensor, path: Path) -> None:
    export_as_it_is(net, batch, path, dynamic=False)
    model = onnx.load(path)
    source = prune(model)[2]
    pruned = onnx.load_from_string(model_bytes(source))
    onnx.checker.check_model(pruned, full_check=True)
    feeds = random_feeds(model, {"n": 2}, spec.seed)
    pairs = zip(*(run(m.SerializeToString(), feeds) for m in (model, pruned)), strict=True)
    worst = relative_error(*(list(map(torch.from_numpy, side)) for side in zip(*pairs, strict=True)))
    if worst > SINGLE:
        error = relative_error(*(outputs_of(_in_double(m), batch.double()) for m in (model, pruned)))
        assert error <= TIGHT, f"the pruned file differs by {error:.2e} in float64, {worst:.2e} in float32"


def _in_double(model: onnx.ModelProto) -> torch.nn.Module:
    return to_module(OnnxSource(model)).module.double()


def failure_of(number: int, folder: Path | None, *, shrink: bool = False) -> str:
    """Check the network of a seed; return how it fails, or, with ``shrink``, how a smaller one does, else ""."""
    seen: list[tuple[Spec, float]] = []

    @seed(number)
    @settings(
        max_examples=2,  # the first one of each seed is the simplest of all
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
    @given(DRAWN)
    def drawn(network: tuple[Spec, float]) -> None:
        seen.append(network)
        if len(seen) > 1:
            check(*network, folder)

    try:
        drawn()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what we look for
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})\n  {seen[-1]}"
    return ""


def main() -> int:
    """Print what fails; return how many did, at most 1 for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, help="how many networks to draw")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--no-onnx", action="store_true", help="leave out the exported twins")
    parser.add_argument("--shrink", action="store_true", help="look for the smallest network that fails like each")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    failed, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = None if options.no_onnx else Path(name)

        for number in range(options.first, options.first + options.count):
            found = failure_of(number, folder)
            if found:
                failed.append(number)
                print(f"seed {number} fails: {found}", flush=True)
                if options.shrink:
                    print(f"  the smallest: {failure_of(number, folder, shrink=True)}", flush=True)
            done = number - options.first + 1
            if done % 100 == 0:
                print(f"{done} of {options.count}, {len(failed)} fail, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{options.count - len(failed)} of {options.count} hold (seeds from {options.first}); failing: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
