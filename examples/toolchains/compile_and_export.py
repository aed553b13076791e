"""torch.compile and torch.export of a pruned module: it is a GraphModule, and both take it as any.

Run it with `python examples/toolchains/compile_and_export.py`; `--backend aot_eager` needs no C++ compiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import digits
import torch
from torch.export import Dim

import prunec


def main() -> None:
    """Print the milliseconds per batch of each, and how far outputs are from the original's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="inductor")
    backend = parser.parse_args().backend
    data = digits.trained()
    pruned = prunec.prune_module(data.network, data.example).module.eval()
    exported = torch.export.export(pruned, (data.test[:2],), dynamic_shapes=({0: Dim("batch", min=1, max=512)},))
    expected = data.network(data.test)
    for name, module in (
        ("as it was", data.network),
        ("as it was, compiled", torch.compile(data.network, backend=backend)),
        ("pruned", pruned),
        ("pruned, compiled", torch.compile(pruned, backend=backend)),
        ("pruned, exported", exported.module()),
    ):
        error = (module(data.test) - expected).abs().max()
        print(f"{name:<20} {milliseconds(module, data.test):7.2f} ms  largest difference of a score {error:.1e}")


def milliseconds(module: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """Return the median time of a call, after three that do not count."""
    times = []
    for _ in range(13):
        started = time.perf_counter()
        module(x)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[3:])


if __name__ == "__main__":
    with torch.no_grad():
        main()
