"""LiteRT (TensorFlow Lite): torch graph to ``.tflite`` with Google's litert-torch, run by its interpreter."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import protocol
import torch
import torch_graph

_METADATA = "TFLITE_METADATA"  # the name under which readers of the format look for it
_LABELS = "labels.txt"
# of metadata_schema.fbs, the schema of the format's metadata
_IMAGE, _FEATURES, _NORMALIZATION = 2, 1, 1  # members of unions
_RGB, _AXIS_LABELS = 1, 2


class LiteRt(protocol.Program):
    """The file keeps uint8 NHWC in."""

    def convert(self, graph: str, folder: str, facts: dict[str, Any]) -> list[str]:
        """Write ``model.tflite``."""
        import litert_torch

        # 0.10 keeps per-channel integers of others' quantizers as floats with a rounding at run time: floats are faster
        module = torch_graph.TorchGraph(graph, integers="none").eval()
        image = torch.zeros(facts["shape"], dtype=torch.uint8)
        place = Path(folder) / "model.tflite"
        litert_torch.convert(module, (image,)).export(str(place))
        place.write_bytes(_described(place.read_bytes(), facts))
        return [place.name]

    def load(self, files: list[str], threads: int) -> None:
        """Open the interpreter, with the XNNPACK kernels that are its default."""
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(files[0], num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        outputs = {entry["name"]: entry["index"] for entry in self._interpreter.get_output_details()}
        self._output = outputs["logits"]

    def infer(self, image: Any) -> Any:
        """Return the logits."""
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)


def _described(data: bytes, facts: dict[str, Any]) -> bytes:
    """Return the file with named tensors and the format's metadata; the labels follow as a zip, as the format asks."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    (graph,) = model.subgraphs
    names = {graph.inputs[0]: "image", graph.outputs[0]: "logits", graph.outputs[1]: "probabilities"}
    for index, name in names.items():
        graph.tensors[index].name = name
    for signature in model.signatureDefs:
        for entry in (*signature.inputs, *signature.outputs):
            entry.name = names[entry.tensorIndex]
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(_metadata(facts))
    model.buffers.append(buffer)
    entry.name, entry.buffer = _METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        # a date of its own would make two files of one model differ
        archive.writestr(zipfile.ZipInfo(_LABELS, (1980, 1, 1, 0, 0, 0)), facts["labels_text"])
    return bytes(builder.Output()) + packed.getvalue()


def _metadata(facts: dict[str, Any]) -> bytes:
    """Return the ModelMetadata flatbuffer: what the input is, and the file that names the output's last axis."""
    builder = flatbuffers.Builder(1024)

    def text(value: str) -> int:
        return int(builder.CreateString(value))

    def vector(offsets: Sequence[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def floats(values: Sequence[float]) -> int:
        builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            builder.PrependFloat32(value)
        return int(builder.EndVector())

    def table(size: int, *, offsets: dict[int, int] | None = None, bytes_: dict[int, int] | None = None) -> int:
        builder.StartObject(size)
        for slot, offset in (offsets or {}).items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, value in (bytes_ or {}).items():
            builder.PrependInt8Slot(slot, value, 0)
        return int(builder.EndObject())

    _, height, width, _ = facts["shape"]
    builder.StartObject(2)
    builder.PrependUint32Slot(0, width, 0)
    builder.PrependUint32Slot(1, height, 0)
    size = builder.EndObject()
    properties = table(2, offsets={1: size}, bytes_={0: _RGB})
    content = table(3, offsets={1: properties}, bytes_={0: _IMAGE})
    # mean and deviation are applied inside the model: what is fed is what was decoded
    options = table(2, offsets={0: floats([0.0]), 1: floats([1.0])})
    unit = table(2, offsets={1: options}, bytes_={0: _NORMALIZATION})
    stats = table(2, offsets={0: floats([255.0]), 1: floats([0.0])})
    fields = {0: text("image"), 1: text(facts["input_text"]), 3: content, 4: vector([unit]), 5: stats}
    image = table(7, offsets=fields)
    outputs = []
    for name in ("logits", "probabilities"):
        file = table(5, offsets={0: text(_LABELS), 1: text("one label per line")}, bytes_={2: _AXIS_LABELS})
        content = table(3, offsets={1: table(0)}, bytes_={0: _FEATURES})
        outputs.append(table(7, offsets={0: text(name), 3: content, 6: vector([file])}))
    graph = table(9, offsets={0: text("classifier"), 2: vector([image]), 3: vector(outputs)})
    fields = {0: text(facts["name"]), 1: text("image classifier"), 2: text("1"), 3: vector([graph]), 7: text("1.0.0")}
    builder.Finish(table(8, offsets=fields), file_identifier=b"M001")
    return bytes(builder.Output())


if __name__ == "__main__":
    protocol.serve(LiteRt())
