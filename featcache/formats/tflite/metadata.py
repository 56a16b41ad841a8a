"""What a ``.tflite`` file says of itself: a flatbuffer of the format's metadata schema, and the labels in a zip.

The numbers of fields and members are those of ``metadata_schema.fbs``, whose identifier is ``M001``. Android's task
library and other readers of the format look for it under the name ``TFLITE_METADATA``.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

NAME = "TFLITE_METADATA"
_LABELS = "labels.txt"
_IMAGE, _FEATURES, _NORMALIZATION = 2, 1, 1  # members of unions
_RGB, _AXIS_LABELS = 1, 2
_OLDEST_DATE = (1980, 1, 1, 0, 0, 0)  # a date of its own would make two files of one model differ


def attached_labels(labels_text: str) -> bytes:
    """Return the zip that follows the flatbuffer in the file: `labels_text` as ``labels.txt``."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo(_LABELS, _OLDEST_DATE), labels_text)
    return packed.getvalue()


def metadata_bytes(
    *, name: str, tensor: str, description: str, image_size: tuple[int, int] | None, outputs: Sequence[str]
) -> bytes:
    """Return the metadata: the image's size, colours and normalisation, and the file that names the outputs' last axis.

    `tensor`: the input's name. `description`: of the input, for people. `image_size`: (height, width), None of other
    inputs than images, which have no more to say.
    """
    import flatbuffers

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

    if image_size is None:
        content = table(3, offsets={1: table(0)}, bytes_={0: _FEATURES})
        source = table(7, offsets={0: text(tensor), 1: text(description), 3: content})
    else:
        height, width = image_size
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
        fields = {0: text(tensor), 1: text(description), 3: content, 4: vector([unit]), 5: stats}
        source = table(7, offsets=fields)
    ends = []
    for output in outputs:
        file = table(5, offsets={0: text(_LABELS), 1: text("one label per line")}, bytes_={2: _AXIS_LABELS})
        content = table(3, offsets={1: table(0)}, bytes_={0: _FEATURES})
        ends.append(table(7, offsets={0: text(output), 3: content, 6: vector([file])}))
    graph = table(9, offsets={0: text("classifier"), 2: vector([source]), 3: vector(ends)})
    fields = {
        0: text(name),
        1: text("classifier" if image_size is None else "image classifier"),
        2: text("1"),
        3: vector([graph]),
        7: text("1.0.0"),
    }
    builder.Finish(table(8, offsets=fields), file_identifier=b"M001")
    return bytes(builder.Output())
