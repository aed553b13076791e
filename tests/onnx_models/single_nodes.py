"""ONNX models of one node, with inputs of its op: importer and referee are compared with ONNX Runtime on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(
    op: str, tensors: dict[str, Any], opset: int, shape: tuple[Any, ...] = (1, 4, 6, 5), domain: str = "", **attrs: Any
) -> onnx.ModelProto:
    """One node between two identities, on x; ``tensors`` are its further inputs."""
    nodes = [
        helper.make_node("Identity", ["x"], ["inside"]),
        helper.make_node(op, ["inside", *tensors], ["made"], name="tested", domain=domain, **attrs),
        helper.make_node("Identity", ["made"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = onnx.ValueInfoProto(name="y")
    kept = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items() if array is not None]
    y.type.tensor_type.elem_type = TensorProto.INT64 if op in ("ArgMax", "ArgMin") else TensorProto.FLOAT
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], kept), opset_imports=opsets, ir_version=8)


CASES: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    ("Conv", {"w": weights(6, 2, 3, 3), "b": weights(6)}, 11, {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", {"w": weights(6, 4, 3, 3)}, 13, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", {"w": weights(6, 4, 3, 3)}, 13, {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3), "b": weights(3)}, 11,
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3)}, 11, {"strides": [2, 2], "pads": [0, 1, 1, 1]}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3)}, 11, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3)}, 11,
     {"strides": [2, 2], "auto_pad": "VALID", "output_shape": [14, 12]}),
    ("ConvTranspose", {"w": weights(4, 3, 3, 3)}, 11, {"strides": [2, 2], "output_shape": [12, 10]}),
    ("Affine", {}, 7, {"alpha": 2.0, "beta": 1.0}),
    ("ScaledTanh", {}, 7, {"alpha": 2.0, "beta": 0.5}),
    ("BatchNormalization", {"g": weights(4), "b": weights(4), "m": weights(4), "v": weights(4) ** 2}, 15, {}),
    ("InstanceNormalization", {"g": weights(4), "b": weights(4)}, 7, {}),
    ("LayerNormalization", {"g": weights(5), "b": weights(5)}, 17, {}),
    ("GroupNormalization", {"g": weights(4), "b": weights(4)}, 21, {"num_groups": 2}),
    ("LRN", {}, 13, {"size": 3}),
    ("MaxPool", {}, 12, {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    ("MaxPool", {}, 12, {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [2, 2]}),
    ("AveragePool", {}, 11, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {}, 11, {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    ("AveragePool", {}, 11, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", {}, 7, {}),
    ("GlobalMaxPool", {}, 7, {}),
    ("Clip", {}, 7, {"min": 0.0, "max": 6.0}),
    ("Clip", {"lo": np.float32(-0.5)}, 13, {}),
    ("LeakyRelu", {}, 16, {"alpha": 0.2}),
    ("HardSigmoid", {}, 6 + 1, {"alpha": 1 / 6, "beta": 0.5}),
    ("HardSigmoid", {}, 7, {}),
    ("HardSwish", {}, 14, {}),
    ("PRelu", {"s": weights(4, 1, 1)}, 16, {}),
    ("Add", {"b": weights(1, 4, 1, 1)}, 13, {}),
    ("Sub", {"b": np.float32(2.5)}, 13, {}),
    ("Mul", {"b": weights(5)}, 13, {}),
    ("Div", {"b": np.float32(3)}, 13, {}),
    ("Softmax", {}, 11, {"axis": 1}),
    ("Softmax", {}, 13, {"axis": 1}),
    ("LogSoftmax", {}, 13, {}),
    ("Reshape", {"s": np.array([1, 2, 2, 6, 5])}, 13, {}),
    ("Reshape", {"s": np.array([1, -1])}, 13, {}),
    ("Reshape", {"s": np.array([0, 0, -1])}, 13, {}),
    ("Flatten", {}, 13, {}),
    ("Transpose", {}, 13, {"perm": [0, 2, 3, 1]}),
    ("Slice", {"s": np.array([1, -1]), "e": np.array([4, -9]), "a": np.array([1, 3]), "t": np.array([1, -1])}, 13, {}),
    ("Gather", {"i": np.array([2, 0, -1])}, 13, {"axis": 1}),
    ("Gather", {"i": np.array(1)}, 13, {"axis": 1}),
    ("Pad", {"p": np.array([0, 1, 0, 2, 0, 0, 1, 0]), "v": np.float32(1.5)}, 13, {}),
    ("Pad", {"p": np.array([0, 0, 1, 2, 0, 0, 1, 0])}, 13, {"mode": "reflect"}),
    ("Tile", {"r": np.array([1, 2, 1, 1])}, 13, {}),
    ("Expand", {"s": np.array([1, 4, 6, 5])}, 13, {}),
    ("DepthToSpace", {}, 13, {"blocksize": 2}),
    ("DepthToSpace", {}, 13, {"blocksize": 2, "mode": "CRD"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}, 13, {"mode": "nearest"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 1.5, 2.4], np.float32)}, 13,
     {"mode": "nearest", "nearest_mode": "ceil"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)}, 13, {"mode": "linear"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)}, 13,
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)}, 13,
     {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    ("Upsample", {"s": np.array([1, 1, 2, 2], np.float32)}, 9, {"mode": "linear"}),
    ("ReduceMean", {}, 13, {"axes": [2, 3], "keepdims": 0}),
    ("ReduceMean", {"a": np.array([-1])}, 18, {}),
    ("ReduceSumSquare", {}, 13, {"axes": [1]}),
    ("ReduceL2", {}, 13, {"axes": [1]}),
    ("ArgMax", {}, 13, {"axis": 1, "keepdims": 0}),
]  # fmt: skip
