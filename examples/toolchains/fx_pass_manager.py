"""prunec as one pass of torch.fx's PassManager, between two others.

Run it with `python examples/toolchains/fx_pass_manager.py`.
"""

from __future__ import annotations

import digits
import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager
from torch.fx.passes.shape_prop import ShapeProp

from prunec.toolchain.fx_pass import PruneChannels


def main() -> None:
    """Print the widths that a later pass of the pipeline sees, and where each layer came from."""
    data = digits.trained()

    def note_shapes(module: fx.GraphModule) -> PassResult:
        ShapeProp(module).propagate(*data.example)
        return PassResult(module, True)

    prune = PruneChannels(data.example)
    pipeline = PassManager(passes=[note_shapes, prune], steps=1)
    smaller = pipeline(fx.symbolic_trace(data.network)).graph_module
    for node in smaller.graph.nodes:
        if node.op == "call_module" and "conv" in str(node.target):
            path = ".".join(node.meta["nn_module_stack"])
            print(f"{node.name}: {node.meta['tensor_meta'].shape[1]} channels (module {path})")
    error = (smaller(data.test) - data.network(data.test)).abs().max()
    assert prune.report is not None
    print(f"{prune.report.removed_channels} channels removed, largest difference of a score {error:.1e}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
