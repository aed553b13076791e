"""onnxslim before prunec, and after it; needs `pip install onnxslim`.

Run it with `python examples/toolchains/onnxslim_too.py`. Slimming folds and merges nodes, and prunec takes channels:
the order does not matter for the function, and both together leave the smallest file.
"""

from __future__ import annotations

import importlib.util


def main() -> None:
    """Print nodes and bytes of each, and how far outputs are from the original's."""
    if importlib.util.find_spec("onnxslim") is None:
        print("skipped: onnxslim is not installed")
        return
    import digits
    import numpy as np
    import onnxslim

    import prunec

    data = digits.trained()
    model = digits.exported(data)
    expected = digits.run(model, data.test)
    for name, made in (
        ("as it was", model),
        ("slim", onnxslim.slim(model)),
        ("pruned", prunec.prune_model(model).model),
        ("pruned, then slim", onnxslim.slim(prunec.prune_model(model).model)),
        ("slim, then pruned", prunec.prune_model(onnxslim.slim(model)).model),
    ):
        error = np.abs(digits.run(made, data.test) - expected).max()
        print(f"{name:<18} {len(made.graph.node):3} nodes {made.ByteSize():>7,} bytes  largest difference {error:.1e}")


if __name__ == "__main__":
    main()
