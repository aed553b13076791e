"""prunec as a surgeon of Olive's GraphSurgeries pass; needs `pip install olive-ai`.

Run it with `OLIVE_DISABLE_TELEMETRY=1 python examples/toolchains/olive_workflow.py`.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path


def main() -> None:
    """Print the size of the file that the workflow was given, and of the one that it made."""
    if importlib.util.find_spec("olive") is None:
        print("skipped: olive-ai is not installed")
        return
    os.environ.setdefault("OLIVE_DISABLE_TELEMETRY", "1")
    import digits
    import numpy as np
    import onnx
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.graph_surgeries import GraphSurgeries

    import prunec.toolchain.olive_surgeon  # noqa: F401  # Olive finds the surgeon among those that are loaded

    data = digits.trained()
    model = digits.exported(data)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        surgery = create_pass_from_dict(GraphSurgeries, {"surgeries": [{"surgeon": "PruneChannels"}]}, True)
        made = surgery.run(ONNXModelHandler(str(Path(folder) / "model.onnx")), str(Path(folder) / "out"))
        smaller = onnx.load(made.model_path)
    error = np.abs(digits.run(smaller, data.test) - digits.run(model, data.test)).max()
    print(f"{model.ByteSize():,} -> {smaller.ByteSize():,} bytes, largest difference of a score {error:.1e}")


if __name__ == "__main__":
    main()
