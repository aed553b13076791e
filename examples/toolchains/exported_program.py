"""torch.export in, torch.export out: an ExportedProgram is pruned and stays one, its open batch included.

Run it with `python examples/toolchains/exported_program.py`.
"""

from __future__ import annotations

import io

import digits
import torch
from torch.export import Dim

import prunec


def main() -> None:
    """Print the weights before and after, the sizes that stayed open, and what is lost (nothing)."""
    data = digits.trained()
    program = torch.export.export(data.network, (data.test[:2],), dynamic_shapes=({0: Dim("batch", min=1, max=512)},))
    pruned = prunec.prune_model(program)
    before, after = (sum(v.numel() for v in p.state_dict.values()) for p in (program, pruned.model))
    print(f"{before:,} -> {after:,} numbers; open sizes: {list(pruned.model.range_constraints.values())}")
    error = (pruned.model.module()(data.test) - data.network(data.test)).abs().max()
    print(f"largest difference of a score, on a batch of {len(data.test)}: {error:.1e}")
    buffer = io.BytesIO()
    torch.export.save(pruned.model, buffer)
    print(f"saved: {len(buffer.getvalue()):,} bytes")


if __name__ == "__main__":
    with torch.no_grad():
        main()
