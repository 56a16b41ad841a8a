"""The ONNX operations that a classifier of ours is made of: what a writer of a device format has to know.

They are those that `featcache.graph.write.write_onnx` leaves, with a batch of one, in the families of timm that the
tests and benchmarks train on, with every kind of head, and their near relatives in others. A writer refuses what it
does not know by name; Swin's arithmetic of shapes (Mod, Shape), which no pass folds, is refused everywhere.
"""

from __future__ import annotations

CLASSIFIER_OPERATIONS = (
    # of the image: bytes to floats, channels first, mean and deviation
    "Cast", "Transpose", "Sub", "Mul",
    # of convolutional networks
    "Conv", "BatchNormalization", "AveragePool", "MaxPool", "GlobalAveragePool", "Pad",
    "Relu", "Clip", "LeakyRelu", "Elu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh",
    # of transformers
    "MatMul", "LayerNormalization", "InstanceNormalization", "Erf", "Softmax",
    "Expand", "Gather", "Split", "Slice", "Concat",
    # of normalisations written out, of attention over features, of heads that measure angles
    "Add", "Div", "Pow", "Sqrt", "Exp", "Neg", "Max", "Min", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2",
    # of the head, and of shapes
    "Gemm", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity",
    # of what is quantized
    "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
