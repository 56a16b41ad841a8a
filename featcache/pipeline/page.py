"""``report.html`` from ``report.json``, and from nothing else: one file that works offline and asks nobody anything.

A report document is JSON with any of these keys; each that is there becomes a section:

- ``title``, ``created``, ``weights``, ``random_weights`` (bool), ``classes``, ``machine`` (`featcache.system.machine`);
- ``table``: one entry per stage, ``{model, accuracy, val_accuracy, bytes, latency_ms}``, and ``shipped``, the one in
  the bundle;
- ``run``: ``{build, train, merge, prune, quantize}``, what the verbs print with ``--json``; ``notes``: lines;
- ``export``: ``{formats: {name: …}}`` as `ExportReport.to_json`; ``evaluation``: as `Evaluation.to_json`, with
  ``mistakes`` ``[{path, label, predicted, probability, thumbnail}]``;
- ``candidates``: what a search tried, as `Candidate.to_json`, and ``chosen``, the name of one;
- ``steps``: the lineage, ``[{verb, …}]``.

File names and labels come from strangers: everything is escaped, pictures are only taken as ``data:`` URIs, there is no
script, and a content security policy forbids every request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.pipeline.candidates import candidates_section
from featcache.pipeline.classes import confusion_section, mistakes_section, per_class_section
from featcache.pipeline.headline import figures_section, warning_section
from featcache.pipeline.history import machine_section, notes_section, steps_section, verbs_section
from featcache.pipeline.parts import mapping_in, text
from featcache.pipeline.path import path_section
from featcache.pipeline.sizes import formats_section, models_section
from featcache.pipeline.style import STYLE
from featcache.system.files import refuse_existing, write_atomically
from featcache.system.json import DocumentKind, read_document

FORMAT = "featcache.report"
VERSION = 1
_DOCUMENT = DocumentKind(
    "a report",
    make="make one with 'featcache run' or 'featcache export'",
    renew="export again",
    format=FORMAT,
    versions=(VERSION,),
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    report_json: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, overwrite: bool = False
) -> Path:
    """Write the HTML of the report at `report_json` to `out` (default: ``report.html`` beside it) and return the path.

    Raises `MissingError` where there is no report, `FormatError` where it is not one of this program, `CorruptError`
    where it was damaged, `ExistsError` where `out` exists and `overwrite` is false.
    """
    source = Path(report_json)
    document = read_report(source)
    destination = source.with_name("report.html") if out is None else Path(out)
    refuse_existing(destination, overwrite=overwrite)
    write_atomically(destination, render_report(document).encode())
    return destination


def read_report(source: Path) -> dict[str, Any]:
    """Return the report document in the file `source`.

    Raises `MissingError`, `FormatError` and `CorruptError` as `featcache.system.json.read_document`.
    """
    return read_document(source, _DOCUMENT)


def render_report(document: Mapping[str, Any]) -> str:
    """Return the whole HTML page of a report document; sections without data are left out."""
    title = text(document.get("title") or "featcache report")
    sections = [
        warning_section(document),
        figures_section(document),
        models_section(document),
        formats_section(document),
        per_class_section(document),
        confusion_section(document),
        path_section(document),
        candidates_section(document),
        verbs_section(document),
        steps_section(document),
        notes_section(document),
        mistakes_section(document),
        machine_section(document),
    ]
    backbone = mapping_in(document, "export").get("name")
    facts = " · ".join(text(value) for value in (backbone, document.get("created")) if value)
    subtitle = f"<p>{facts}</p>" if facts else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
        f"<header><h1>{title}</h1>{subtitle}</header>\n"
        + "\n".join(section for section in sections if section)
        + "\n<footer>Made by featcache from report.json alone.</footer>\n</main></body></html>\n"
    )
