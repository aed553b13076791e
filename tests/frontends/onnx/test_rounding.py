"""Where a file's own arithmetic is poorly conditioned, removal brings it nearer to the exact result, not farther."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx_models.nets import Array, Net, num_removed, prune, random_feeds, run
from torch.nn import functional as F

from prunec.backends.onnx.save import save_onnx


def test_instance_norm_of_a_constant_channel_amplifies_the_originals_rounding(tmp_path: Path) -> None:
    net = Net()
    made = net.conv(net.input("x", [1, 3, 256, 256]), 3, 8, silent=(1, 4, 5))
    gamma, beta = np.ones(8, np.float32), np.linspace(-1, 1, 8, dtype=np.float32)
    normal = net.op("InstanceNormalization", made, net.const(gamma), net.const(beta), epsilon=1e-5)
    net.output(net.conv(net.op("Relu", normal), 8, 4))
    model = net.model()
    onnx.save(model, tmp_path / "before.onnx")
    _, plan, pruned = prune(model)
    save_onnx(pruned, tmp_path / "after.onnx")
    assert num_removed(plan)
    feeds = random_feeds(model)
    exact = in_float64(model, feeds["x"])
    errors = [np.abs(run(tmp_path / f"{name}.onnx", feeds)[0] - exact).max() for name in ("before", "after")]
    assert errors[1] <= errors[0]
    assert errors[1] <= 1e-3 * np.abs(exact).max()


def in_float64(model: onnx.ModelProto, x: Array) -> Array:
    """Compute the network above in double precision."""
    arrays = [numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer]
    first, bias, gamma, beta, second, last = map(torch.from_numpy, arrays)
    y = F.conv2d(torch.from_numpy(x).double(), first, bias, padding=1)
    y = F.relu(F.instance_norm(y, weight=gamma, bias=beta, eps=1e-5))
    result: Array = F.conv2d(y, second, last, padding=1).numpy()
    return result
