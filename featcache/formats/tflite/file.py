"""The bytes of a ``.tflite`` file: a flatbuffer of the format's schema, identifier ``TFL3``.

The schema's classes come with the runtime, ai-edge-litert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from featcache.formats.tflite.graph import Operator, Scale, Tensor, TfliteGraph

_VERSION = 3  # of the schema
_ALIGNED = 16  # where the schema wants the data of constants to begin
_OLD_KINDS = 127  # operators above it have no number in the schema's older field
_ENUMERATIONS = {
    "padding": "Padding",
    "fusedActivationFunction": "ActivationFunctionType",
    "inDataType": "TensorType",
    "outDataType": "TensorType",
}

# the version of an operator that first took integers of 8 bits, and tensors of more than four axes
_OF_INTEGERS = {
    "ADD": 2, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "DEQUANTIZE": 2, "FULLY_CONNECTED": 4,
    "GATHER": 2, "PAD": 2, "SLICE": 2, "STRIDED_SLICE": 2, "TRANSPOSE": 2,
}  # fmt: skip
_OF_MANY_AXES = {"PAD": 4, "PADV2": 4, "SLICE": 5, "STRIDED_SLICE": 4, "TRANSPOSE": 4}
_OF_MANY_BROADCAST = {"DIV": 2, "MAXIMUM": 3, "MINIMUM": 3, "SUB": 3}
_FEW_AXES = 4
_BROADCAST_TO = 2  # its first version as an operator of its own
_GROUPED_CONVOLUTION, _ROWS_PRODUCT, _CHANNEL_SCALES, _FROM_HALVES, _DILATED_DEPTHWISE = 6, 5, 5, 3, 2
_BARE_PRODUCT = 6  # without a bias
_ROUNDING_PRODUCT = 12  # of floats and integers with a scale per output


def file_bytes(graphs: Mapping[str, TfliteGraph], *, description: str, metadata: Mapping[str, bytes]) -> bytes:
    """Return the file of finished `graphs` by the names of their signatures; equal constants are in it once.

    `metadata`: contents by the names under which readers look for them.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version, model.description = _VERSION, description
    constants = _Constants(schema)
    model.operatorCodes, codes = [], {}
    model.subgraphs, model.signatureDefs = [], []
    for number, (signature, graph) in enumerate(graphs.items()):
        part = schema.SubGraphT()
        part.name, part.operators = signature if number else "main", []
        places = {name: place for place, name in enumerate(graph.tensors)}
        part.tensors = [_tensor(schema, constants, tensor) for tensor in graph.tensors.values()]
        for operator in graph.operators:
            code = (operator.kind, _version(operator, graph.tensors))
            if code not in codes:
                codes[code] = len(model.operatorCodes)
                model.operatorCodes.append(_operator_code(schema, *code))
            part.operators.append(_operator(schema, operator, codes[code], places))
        part.inputs = [places[name] for name in graph.inputs]
        part.outputs = [places[name] for name in graph.outputs]
        model.subgraphs.append(part)
        model.signatureDefs.append(_signature(schema, signature, number, graph, places))
    model.buffers = constants.buffers
    model.metadata = []
    for name, contents in metadata.items():
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, len(model.buffers)
        model.buffers.append(_Buffer(schema, contents))
        model.metadata.append(entry)
    builder = flatbuffers.Builder(sum(len(buffer.data) + 64 for buffer in model.buffers))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Buffer:
    """The schema's Buffer, aligned: its own Python class lets data begin anywhere."""

    def __init__(self, schema: ModuleType, data: bytes) -> None:
        self.data = data
        self._schema = schema

    def Pack(self, builder: Any) -> int:  # noqa: N802 - called by the schema's classes
        """Return the offset of the table in `builder`."""
        if self.data:
            builder.StartVector(1, len(self.data), _ALIGNED)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            vector = builder.EndVector()
        self._schema.BufferStart(builder)
        if self.data:
            self._schema.BufferAddData(builder, vector)
        return int(self._schema.BufferEnd(builder))


class _Constants:
    """Buffers of the file, each content once; the first is that of tensors without data."""

    def __init__(self, schema: ModuleType) -> None:
        self.buffers = [_Buffer(schema, b"")]
        self.zeros: dict[tuple[int, int], int] = {}  # see `_Quantization`
        self._schema = schema
        self._places: dict[bytes, int] = {}

    def place(self, data: bytes) -> int:
        """Return the number of the buffer with `data`, a new one where there is none."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._places:
            self._places[digest] = len(self.buffers)
            self.buffers.append(_Buffer(self._schema, data))
        return self._places[digest]


class _Quantization:
    """The schema's QuantizationParameters, whose zero points are one vector in the file for all tensors of such.

    The schema wants eight bytes for each scale, although those of weights are all 0: a tenth of a small model.
    `zeros`: offsets of the vectors by number and zero point.
    """

    def __init__(self, schema: ModuleType, scale: Scale, zeros: dict[tuple[int, int], int]) -> None:
        self._schema = schema
        self._scale = scale
        self._zeros = zeros

    def Pack(self, builder: Any) -> int:  # noqa: N802 - called by the schema's classes
        """Return the offset of the table in `builder`."""
        count, zero = len(self._scale.values), self._scale.zero_point
        if (count, zero) not in self._zeros:
            self._zeros[count, zero] = builder.CreateNumpyVector(np.full(count, zero, dtype=np.int64))
        values = builder.CreateNumpyVector(np.array(self._scale.values, dtype=np.float32))
        self._schema.QuantizationParametersStart(builder)
        self._schema.QuantizationParametersAddScale(builder, values)
        self._schema.QuantizationParametersAddZeroPoint(builder, self._zeros[count, zero])
        self._schema.QuantizationParametersAddQuantizedDimension(builder, self._scale.axis)
        return int(self._schema.QuantizationParametersEnd(builder))


def _tensor(schema: ModuleType, constants: _Constants, tensor: Tensor) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.hasRank = tensor.name, list(tensor.shape), True
    made.type = _word(schema, "TensorType", tensor.dtype)
    if tensor.values is not None:
        made.buffer = constants.place(tensor.values.astype(tensor.values.dtype.newbyteorder("<")).tobytes())
    if tensor.scale is not None:
        made.quantization = _Quantization(schema, tensor.scale, constants.zeros)
    return made


def _operator_code(schema: ModuleType, kind: str, version: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode, made.version = getattr(schema.BuiltinOperator, kind), version
    made.deprecatedBuiltinCode = min(made.builtinCode, _OLD_KINDS)
    return made


def _operator(schema: ModuleType, operator: Operator, code: int, places: Mapping[str, int]) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex = code
    made.inputs, made.outputs = [places[name] for name in operator.inputs], [places[operator.output]]
    if operator.table is not None:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, operator.table)
        made.builtinOptions = getattr(schema, f"{operator.table}T")()
        for field, value in operator.options.items():
            known = _ENUMERATIONS.get(field)
            setattr(made.builtinOptions, field, value if known is None else _word(schema, known, value))
    return made


def _word(schema: ModuleType, enumeration: str, word: str) -> int:
    return int(getattr(getattr(schema, enumeration), word.upper()))


def _signature(schema: ModuleType, name: str, number: int, graph: TfliteGraph, places: Mapping[str, int]) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = name, number
    made.inputs, made.outputs = [], []
    for entries, names in ((made.inputs, graph.inputs), (made.outputs, graph.outputs)):
        for tensor in names:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = graph.tensors[tensor].name, places[tensor]
            entries.append(entry)
    return made


def _version(operator: Operator, tensors: Mapping[str, Tensor]) -> int:
    """Return the version of the operator that a runtime must have: older ones then refuse the file by name."""
    inputs = [tensors[name] for name in operator.inputs]
    kind, first = operator.kind, inputs[0]
    versions = [1]
    if first.dtype == "int8":
        versions.append(_OF_INTEGERS.get(kind, 1))
        if kind == "DEQUANTIZE" and first.scale is not None and len(first.scale.values) > 1:
            versions.append(_CHANNEL_SCALES)
    if kind == "DEQUANTIZE" and first.dtype == "float16":
        versions.append(_FROM_HALVES)
    if len(first.shape) > _FEW_AXES:
        versions.append(_OF_MANY_AXES.get(kind, 1))
        if len({tensor.shape for tensor in inputs}) > 1:
            versions.append(_OF_MANY_BROADCAST.get(kind, 1))
    if kind == "CONV_2D" and inputs[1].shape[3] != first.shape[3]:
        versions.append(_GROUPED_CONVOLUTION)
    if (
        kind == "DEPTHWISE_CONV_2D"
        and max(operator.options["dilationHFactor"], operator.options["dilationWFactor"]) > 1
    ):
        versions.append(_DILATED_DEPTHWISE)
    if kind == "FULLY_CONNECTED":
        wanted = {
            _ROWS_PRODUCT: operator.options["keepNumDims"],
            _BARE_PRODUCT: len(inputs) == 2,
            _ROUNDING_PRODUCT: first.dtype != inputs[1].dtype,
        }
        versions += [version for version, needed in wanted.items() if needed]
    if kind == "BROADCAST_TO":
        versions.append(_BROADCAST_TO)
    return max(versions)
