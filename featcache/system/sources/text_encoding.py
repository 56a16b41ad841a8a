"""Bytes to text: UTF-8 and nothing else."""

from __future__ import annotations

import codecs

from featcache.errors import InputError, SampleError

_MARKS = (  # of UTF-32 first: it begins as UTF-16 does
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
_LOOKED_AT = 64  # bytes, for the zeros of UTF-16 without its mark
_SHOWN = 12  # bytes before and after the first that is not UTF-8


def decode_utf8(data: bytes, source: str) -> str:
    """Return the text of `data` without UTF-8's mark; every character, NUL and line ends included, stays as it is.

    Raises `InputError`, with the encoding's name and the line, for bytes that are not UTF-8; `source` names them.

    >>> decode_utf8("caf\\u00e9".encode(), "a.txt")
    'café'
    >>> decode_utf8("text\\ncaf\\u00e9".encode("cp1252"), "a.txt")
    Traceback (most recent call last):
    featcache.errors.InputError: 'a.txt' must be UTF-8 text, line 2 has 'caf\\xe9', as Latin-1 or cp1252 (Windows) \
does: save it as UTF-8
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    head = data[:_LOOKED_AT]
    pairs = len(data) >= 4 and len(data) % 2 == 0
    if encoding is None and pairs and max(head[::2].count(0), head[1::2].count(0)) * 4 > len(head):
        encoding = "UTF-16 without its mark"
    if encoding is not None:
        raise InputError(f"{source!r} must be UTF-8 text, it is {encoding}: save it as UTF-8")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if error.reason == "unexpected end of data" and max(data[: error.start], default=0) > 127:
            raise InputError(
                f"{source!r} must be whole UTF-8 text, it breaks off within a character: get it again"
            ) from error
        shown = data[max(0, error.start - _SHOWN) : error.start + _SHOWN].split(b"\n")
        piece = next(part for part in shown if any(byte > 127 for byte in part))
        raise InputError(
            f"{source!r} must be UTF-8 text, line {line} has '{piece.decode('ascii', 'backslashreplace')}', "
            f"as {_guessed(data, error)} does: save it as UTF-8"
        ) from error


def read_text(data: bytes) -> str:
    """Return the text of an input's bytes; `SampleError` for what is no UTF-8, or has no word."""
    try:
        text = decode_utf8(data, "the text")
    except InputError as error:
        raise SampleError(str(error)) from error
    if not text.strip():
        raise SampleError("the text is empty")
    return text


def _guessed(data: bytes, error: UnicodeDecodeError) -> str:
    """Return what the bytes may be: pairs of high bytes are an East Asian encoding, single ones a Western one."""
    start = error.start
    run = 0
    while start + run < len(data) and data[start + run] > 127:
        run += 1
    return "GB18030, Shift JIS or another encoding of two bytes" if run >= 4 else "Latin-1 or cp1252 (Windows)"
