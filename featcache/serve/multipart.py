"""The files of a ``multipart/form-data`` body: names are text, contents are bytes, nothing is written to disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from featcache.errors import InputError

FIELD = "files"


@dataclass(slots=True)
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file of a request: the name that the client gave it, None for none, and its bytes."""

    name: str | None
    data: bytes


def is_multipart(content_type: str) -> bool:
    """Return whether a ``Content-Type`` says ``multipart/form-data``."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def read_files(body: bytes, content_type: str) -> list[UploadedFile]:
    """Return the files in the fields ``files`` of a multipart `body`, in their order.

    Raises `InputError` where the body is cut short or not of that form, holds other fields, or no file.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InputError("the Content-Type of multipart/form-data must state its boundary, got none")
    parts: list[_Part] = []
    name, value = bytearray(), bytearray()
    ended = False

    def end_header() -> None:
        parts[-1].headers[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": lambda: parts.append(_Part()),
                "on_header_field": lambda data, start, stop: name.extend(data[start:stop]),
                "on_header_value": lambda data, start, stop: value.extend(data[start:stop]),
                "on_header_end": end_header,
                "on_part_data": lambda data, start, stop: parts[-1].data.extend(data[start:stop]),
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"the body must be multipart/form-data as RFC 7578 has it, got: {error}") from error
    if not ended:
        raise InputError("the body must be whole multipart/form-data, it ends before its last boundary")
    files = [_file(part) for part in parts]
    if not files:
        raise InputError(f"the body must hold one or more files in fields named {FIELD!r}, got none")
    return files


def _file(part: _Part) -> UploadedFile:
    options = parse_options_header(part.headers.get(b"content-disposition", b""))[1]
    named = options.get(b"name", b"").decode("utf-8", "replace")
    if named != FIELD:
        raise InputError(f"fields must be named {FIELD!r}, got {named[:60]!r}")
    name = options.get(b"filename")
    return UploadedFile(None if name is None else name.decode("utf-8", "replace"), bytes(part.data))
