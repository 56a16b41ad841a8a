"""Code to start an app from, generated for the model: its shapes, its labels and its preprocessing are written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from featcache.formats.interface import ModelFacts
from featcache.recipe import Preprocessing

FOLDER = "snippets"
_TEMPLATES = Path(__file__).parent / FOLDER

# format → (file, how its language writes a text)
_FILES: dict[str, tuple[str, Callable[[str], str]]] = {
    "tflite": ("Classifier.kt", lambda text: _quoted(text, _kotlin)),
    "coreml": ("Classifier.swift", lambda text: _quoted(text, _swift)),
    "mslite": ("classifier.cpp", lambda text: _quoted(text, _cpp)),
}
# interpolation → (support, the weight of a distance x ≥ 0) in C++
_FILTERS = {
    "bilinear": ("1", "return std::max(0.0, 1 - x);"),
    "bicubic": (
        "2",
        "if (x < 1) return ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1;\n"
        "  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;",
    ),
    "lanczos": ("3", "return x < 3 ? Sinc(x) * Sinc(x / 3) : 0;"),
}


def write_snippets(facts: ModelFacts, formats: Sequence[str]) -> dict[str, str]:
    """Return ``{path in the bundle: text}`` of the snippets for `formats`; formats without one are passed over."""
    snippets: dict[str, str] = {}
    if not isinstance(facts.input.preprocessing, Preprocessing):
        return snippets  # they begin with pixels
    size = facts.input.preprocessing
    for name in formats:
        if name not in _FILES or (name == "mslite" and size.interpolation not in _FILTERS):
            continue
        file, literal = _FILES[name]
        support, weight = _FILTERS.get(size.interpolation, ("", ""))
        values = {
            "HEIGHT": str(size.height),
            "WIDTH": str(size.width),
            "RESIZE": str(size.resize),
            "CENTER_CROP": "true" if size.crop_mode == "center" else "false",
            "INTERPOLATION": size.interpolation,
            "SUPPORT": support,
            "WEIGHT": weight,
            "LABELS": ", ".join(map(literal, facts.classes)),  # last: a label may look like one of the others
        }
        text = (_TEMPLATES / file).read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        snippets[f"{FOLDER}/{file}"] = text
    return snippets


def _quoted(text: str, escape: Callable[[str], str]) -> str:
    return '"' + "".join(c if " " <= c <= "~" and c not in '"\\$' else escape(c) for c in text) + '"'


def _kotlin(character: str) -> str:
    data = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[i]:02x}{data[i + 1]:02x}" for i in range(0, len(data), 2))


def _swift(character: str) -> str:
    return f"\\u{{{ord(character):x}}}"


def _cpp(character: str) -> str:
    # three octal digits end by themselves, which hexadecimal ones do not; a source file's encoding does not matter
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
