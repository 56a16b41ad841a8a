"""Products of activations with weights in INT8, scales found as the rows come: what makes transformers fast.

Weights become INT8 with one scale per output channel; OpenVINO then quantizes the activations themselves, each group of
128 numbers of a row with a scale of its own, and multiplies integers (as LLM.int8 does per row; Dettmers et al. 2022,
arXiv 2208.07339). Nothing is calibrated on images and no row depends on its neighbours, so rows stay functions of their
image. Convolutions are left alone: their activations would need calibrated ranges.
"""

from __future__ import annotations

import math

import numpy as np
import openvino
from openvino import opset13

GROUP_SIZE = 128
_CONVOLUTIONS = ("Convolution", "GroupConvolution")


def product_share(model: openvino.Model) -> float:
    """Return which share of a model's multiplications are products with constant matrices, 0 to 1."""
    products = others = 0
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in _CONVOLUTIONS:
            kernel = math.prod(operation.get_input_shape(1)) // _channels(operation)
            others += math.prod(operation.get_output_shape(0)) * kernel
        elif operation.get_type_name() == "MatMul":
            inner = operation.get_input_shape(0)[-2 if operation.get_attributes()["transpose_a"] else -1]
            count = math.prod(operation.get_output_shape(0)) * inner
            if _weights(operation) is None:
                others += count
            else:
                products += count
    return products / max(1, products + others)


def _channels(convolution: openvino.Node) -> int:
    """Return how many output channels the kernel of a convolution has, over all groups."""
    shape = convolution.get_input_shape(1)
    return int(shape[0] * shape[1] if convolution.get_type_name() == "GroupConvolution" else shape[0])


def _weights(product: openvino.Node) -> openvino.Node | None:
    """Return the constant that a product's right side is, None where it is computed."""
    node = product.input(1).get_source_output().get_node()
    return node if node.get_type_name() == "Constant" else None


def quantize_products(model: openvino.Model) -> None:
    """Store the constant matrices of all products in INT8, in place, rounded to nearest with a scale per output."""
    for operation in model.get_ordered_ops():
        weights = _weights(operation) if operation.get_type_name() == "MatMul" else None
        if weights is None:
            continue
        values = weights.data.astype(np.float32)
        inner = -1 if operation.get_attributes()["transpose_b"] else -2
        scale = np.abs(values).max(axis=inner, keepdims=True) / 127
        scale[scale == 0] = 1
        rounded = opset13.constant(np.rint(values / scale).astype(np.int8))
        restored = opset13.multiply(opset13.convert(rounded, "f32"), opset13.constant(scale))
        operation.input(1).replace_source_output(restored.output(0))
    model.validate_nodes_and_infer_types()
