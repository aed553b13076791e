"""Outputs that nobody reads, and layers behind a value of unknown rank: neither keeps a channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx_models import nets as onnx_nets


def test_indices_of_a_pool_that_nobody_reads_keep_no_channel(tmp_path: Path) -> None:
    net = onnx_nets.Net(13)
    y = net.op("Relu", net.conv(net.input("x", ["N", 3, 8, 8]), 3, 8, silent=(0, 1, 2)))
    pooled, _ = net.op("MaxPool", y, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    net.output(net.conv(pooled, 8, 4, 1), shape=["N", 4, 4, 4])
    _, made, _ = onnx_nets.assert_pruned_agrees(net.model(), tmp_path, ({"N": 1}, {"N": 3}))
    assert onnx_nets.num_removed(made) > 0


def test_a_filter_of_zeros_is_constant_behind_a_value_of_unknown_rank(tmp_path: Path) -> None:
    """What a Loop returns has no known rank; what a convolution makes of it has one."""
    net = onnx_nets.Net(13)
    x = net.input("x", ["N", 3, 8, 8])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Mul", ["v", "half"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )
    looped = net.op("Loop", net.const(2, np.int64), net.const(True, np.bool_), x, body=body)
    y = net.op("Relu", net.conv(looped, 3, 8, silent=(1, 2, 3)))
    net.output(net.conv(y, 8, 4, 1), shape=["N", 4, 8, 8])
    traced, made, _ = onnx_nets.assert_pruned_agrees(net.model(), tmp_path, ({"N": 1}, {"N": 3}))
    assert traced.graph.shape(looped) is None
    assert onnx_nets.num_removed(made) > 0
