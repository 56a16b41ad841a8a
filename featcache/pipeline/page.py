"""``report.html`` from ``report.json``, and from nothing else: one file that works offline and asks nobody anything.

A report document is JSON with any of these keys; each that is there becomes a section:

- ``title``, ``created``, ``weights``, ``random_weights`` (bool), ``classes``, ``machine`` (`featcache.system.machine`);
- ``table``: one entry per stage, ``{model, accuracy, bytes, latency_ms}``, and ``shipped``, the one in the bundle;
- ``run``: ``{build, train, merge, prune, quantize}``, what the verbs print with ``--json``; ``notes``: lines;
- ``export``: ``{formats: {name: …}}`` as `ExportReport.to_json`; ``evaluation``: as `Evaluation.to_json`, with
  ``mistakes`` ``[{path, label, predicted, probability, thumbnail}]``;
- ``steps``: the lineage, ``[{verb, …}]``.

File names and labels come from strangers: everything is escaped, pictures are only taken as ``data:`` URIs, there is no
script, and a content security policy forbids every request.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from featcache.pipeline.parts import (
    bar,
    count_text,
    entries_of,
    is_number,
    large_text,
    mapping_in,
    median_of,
    milliseconds_text,
    plain_text,
    section,
    share_text,
    size_text,
    table,
    text,
)
from featcache.pipeline.path import path_section
from featcache.pipeline.style import STYLE
from featcache.system.files import refuse_existing, write_atomically
from featcache.system.json import DocumentKind, read_document

FORMAT = "featcache.report"
_DOCUMENT = DocumentKind(
    "a report",
    make="make one with 'featcache run' or 'featcache export'",
    renew="export again",
    format=FORMAT,
    versions=(1,),
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PICTURE = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")
_CELLS_UP_TO = 32  # classes: above, a matrix of numbers is unreadable and a drawing says more
_ROWS_UP_TO = 40
_STRONG = 0.5  # shade above which a number needs the opposite ink
_NAMES = {"float": "float", "pruned": "pruned", "int8": "INT8"}
_VERBS = ("build", "train", "merge", "prune", "quantize")
_UNSAID = ("failures", "problems", "recipe", "lineage", "path", "path_points", "per_class", "confusion")


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
        _warning(document),
        _figures(document),
        _models(document),
        _formats(document),
        _per_class(document),
        _confusion(document),
        path_section(document),
        _verbs(document),
        _steps(document),
        _notes(document),
        _mistakes(document),
        _machine(document),
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


def _warning(document: Mapping[str, Any]) -> str:
    if document.get("random_weights") is not True:
        return ""
    return (
        f'<p class="warning"><b>Random weights.</b> The backbone ({text(document.get("weights", "random"))}) was never '
        "trained: it is a random projection of the pixels, and only the head was fitted. The figures below say what "
        "that gives, not what a trained backbone would.</p>"
    )


def _figures(document: Mapping[str, Any]) -> str:
    evaluation, found = mapping_in(document, "evaluation"), []
    if is_number(evaluation.get("accuracy")):
        where = text(evaluation.get("split") or "given") + f" images ({count_text(evaluation.get('n'))})"
        found.append((share_text(evaluation["accuracy"]), f"right on the {where}"))
    formats = mapping_in(mapping_in(document, "export"), "formats")
    last = next((entry for entry in formats.values() if isinstance(entry, Mapping)), {})
    if is_number(last.get("bytes")):
        found.append((size_text(last["bytes"]), "on the device"))
    if is_number(median_of(last.get("latency_ms"))):
        threads = mapping_in(last, "latency_ms").get("threads")
        found.append(
            (milliseconds_text(median_of(last["latency_ms"])), f"per image, {plain_text(threads)} threads, here")
        )
    classes = document.get("classes")
    if isinstance(classes, list):
        found.append((count_text(len(classes)), "classes"))
    boxes = "".join(f'<div class="figure"><b>{value}</b><span>{label}</span></div>' for value, label in found)
    return f'<div class="figures">{boxes}</div>' if boxes else ""


def _models(document: Mapping[str, Any]) -> str:
    models = entries_of(document.get("table"))
    largest = max((entry["bytes"] for entry in models if is_number(entry.get("bytes"))), default=0)
    slowest = max((v for entry in models if is_number(v := median_of(entry.get("latency_ms")))), default=0)

    def with_bar(shown: str, value: Any, most: Any) -> str:
        return f"{shown}<br>{bar(value / most)}" if is_number(value) and most else shown

    steps = mapping_in(document, "run")
    rows = []
    for entry in models:
        latency, name = median_of(entry.get("latency_ms")), str(entry.get("model", "model"))
        step = mapping_in(steps, {"float": "merge", "pruned": "prune", "int8": "quantize"}.get(name, name))
        macs = step.get("macs")
        if name == "float":
            macs = (mapping_in(steps, "prune") or mapping_in(steps, "quantize")).get("macs_before")
        rows.append(
            [
                text(_NAMES.get(name, name)),
                share_text(entry.get("accuracy")),
                with_bar(size_text(entry.get("bytes")), entry.get("bytes"), largest),
                large_text(step.get("parameters")),
                large_text(macs),
                with_bar(milliseconds_text(latency), latency, slowest),
            ]
        )
    columns = [("model", False), ("accuracy", True), ("bytes", True), ("parameters", True), ("MACs", True)]
    note = (
        "Each measured on its own exported file, from image bytes. Latency: one image in memory, on the machine below."
    )
    if document.get("shipped"):
        note += f" In the bundle: {text(document['shipped'])}."
    return section("From float to small", table([*columns, ("latency", True)], rows) if rows else "", note=note)


def _formats(document: Mapping[str, Any]) -> str:
    formats = mapping_in(mapping_in(document, "export"), "formats")
    rows = []
    for name, entry in formats.items():
        if not isinstance(entry, Mapping):
            continue
        latency = mapping_in(entry, "latency_ms")
        run = (
            text(entry.get("runtime") or "yes")
            if entry.get("executed") is True
            else f"not run: {text(entry.get('reason'))}"
        )
        difference, p95 = entry.get("max_abs_diff"), milliseconds_text(latency.get("p95"))
        agreement = share_text(entry.get("top1_agreement")) if is_number(entry.get("top1_agreement")) else "–"
        rows.append(
            [
                f"{text(name)}<br><small>{'<br>'.join(text(file) for file in entry.get('files', []))}</small>",
                run,
                size_text(entry.get("bytes")),
                share_text(entry.get("accuracy")),
                f"{difference:.2g}" if is_number(difference) else "–",
                agreement,
                f"{milliseconds_text(latency.get('median'))}<br><small>95 %: {p95}</small>",
                f"{size_text(entry.get('resident_bytes'))}<br>"
                f"<small>values on the way: {size_text(entry.get('peak_activation_bytes'))}</small>",
            ]
        )
    columns = [("format", False), ("run by", False), ("bytes", True), ("accuracy", True), ("largest difference", True)]
    references = {str(e.get("reference")) for e in formats.values() if isinstance(e, Mapping) and e.get("reference")}
    compared = max(
        (e["n_compared"] for e in formats.values() if isinstance(e, Mapping) and e.get("n_compared")), default=0
    )
    note = (
        f"Compared with {text(' and '.join(sorted(references)))} on {count_text(compared)} images."
        if references
        else ""
    )
    if rows:
        note += (
            " Agreement of first classes is stated from 300 images on. Memory: what the process grew by while it ran"
            " the file, and what values on the way need at least, by counting. Power is not measured."
        )
    columns += [("agreement", True), ("latency", True), ("memory", True)]
    return section("Device files", table(columns, rows) if rows else "", note=note)


def _per_class(document: Mapping[str, Any]) -> str:
    per_class = mapping_in(mapping_in(document, "evaluation"), "per_class")
    found = [(label, entry) for label, entry in per_class.items() if isinstance(entry, Mapping)]

    def row(label: str, entry: Mapping[str, Any]) -> list[str]:
        value = entry.get("accuracy", entry.get("recall"))
        low = is_number(value) and value < 0.5
        return [
            text(label),
            bar(value, low=low),
            share_text(value),
            f"{plain_text(entry.get('correct'))} of {plain_text(entry.get('n'))}",
        ]

    columns = [("class", False), ("", False), ("accuracy", True), ("right", True)]
    rows = [row(label, entry) for label, entry in found]
    if len(rows) <= _ROWS_UP_TO:
        return section("Accuracy per class", table(columns, rows) if rows else "")

    def weakness(item: tuple[str, Mapping[str, Any]]) -> float:
        value = item[1].get("accuracy", item[1].get("recall"))
        return float(value) if is_number(value) else 2.0

    weakest = [row(*item) for item in sorted(found, key=weakness)[: _ROWS_UP_TO // 2]]
    rest = f"<details><summary>all {len(rows)} classes</summary>{table(columns, rows)}</details>"
    return section("Accuracy per class", table(columns, weakest) + rest, note=f"The {len(weakest)} weakest first.")


def _confusion(document: Mapping[str, Any]) -> str:
    evaluation = mapping_in(document, "evaluation")
    matrix, classes = evaluation.get("confusion"), evaluation.get("classes")
    if not (isinstance(matrix, list) and isinstance(classes, list) and len(matrix) == len(classes) > 0):
        return ""
    counts = [[value if isinstance(value, int) else 0 for value in row] for row in matrix]
    if any(len(row) != len(classes) for row in counts):
        return ""
    labels = [text(label) for label in classes]
    draw = _number_matrix if len(classes) <= _CELLS_UP_TO else _drawn_matrix
    pairs = sorted(
        ((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n > 0),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )[:8]
    most = "".join(f"<li>{labels[i]} taken for {labels[j]}: {n:,}</li>" for n, i, j in pairs)
    listed = f"<details><summary>most frequent confusions</summary><ul>{most}</ul></details>" if most else ""
    note = "Rows: what the image is. Columns: what the model said. Shades: share of the row."
    return section("Confusion matrix", draw(counts, labels) + listed, note=note)


def _number_matrix(counts: list[list[int]], labels: list[str]) -> str:
    head = "".join(f'<th class="column" scope="col"><span title="{label}">{label}</span></th>' for label in labels)
    rows = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        cells = ""
        for j, n in enumerate(row):
            kind, shade = ("right" if i == j else "wrong" if n else "none"), (0.12 + 0.78 * n / total if n else 0)
            said = f"{labels[i]} → {labels[j]}: {n}"
            kind += " strong" if shade > _STRONG else ""
            cells += f'<td class="{kind}" style="--a:{shade:.2f}" title="{said}">{n or "·"}</td>'
        rows.append(f'<tr><th class="row" scope="row" title="{labels[i]}">{labels[i]}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="matrix"><tr><td class="none"></td>{head}</tr>{"".join(rows)}</table></div>'
    )


def _drawn_matrix(counts: list[list[int]], labels: list[str]) -> str:
    side = len(labels)
    cells = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        cells += [
            f'<rect class="{"right" if i == j else "wrong"}" x="{j}" y="{i}" width="1" height="1" '
            f'opacity="{0.15 + 0.85 * n / total:.2f}"><title>{labels[i]} → {labels[j]}: {n}</title></rect>'
            for j, n in enumerate(row)
            if n > 0
        ]
    return (
        f'<svg class="matrix" viewBox="0 0 {side} {side}" role="img" aria-label="Confusion matrix of {side} classes">'
        f"{''.join(cells)}</svg>"
    )


def _mistakes(document: Mapping[str, Any]) -> str:
    figures = []
    for entry in entries_of(mapping_in(document, "evaluation").get("mistakes")):
        picture = str(entry.get("thumbnail", ""))
        if not _PICTURE.fullmatch(picture):
            continue
        said = f'<b class="wrong">{text(entry.get("predicted"))}</b> {share_text(entry.get("probability"))}'
        where = f"is {text(entry.get('label'))}<br><small>{text(entry.get('path'))}</small>"
        figures.append(
            f'<figure><div><img src="{picture}" alt=""></div><figcaption>{said}<br>{where}</figcaption></figure>'
        )
    body = f'<div class="gallery">{"".join(figures)}</div>' if figures else ""
    return section("Surest mistakes", body, note="What the model said, how sure it was, and what the label says.")


def _verbs(document: Mapping[str, Any]) -> str:
    parts = []
    for verb in _VERBS:
        values = mapping_in(mapping_in(document, "run"), verb)
        shown = {key: value for key, value in values.items() if key not in _UNSAID and value not in (None, [], {})}
        if shown:
            rows = "".join(
                f"<dt>{text(key.replace('_', ' '))}</dt><dd>{plain_text(value)}</dd>" for key, value in shown.items()
            )
            parts.append(f"<details><summary>{verb}: {_summary(verb, values)}</summary><dl>{rows}</dl></details>")
    return section("What each step measured", "".join(parts))


_SUMMARIES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "build": lambda v: (
        f"{count_text(v.get('images'))} images, {count_text(v.get('extracted'))} run through the backbone, "
        f"{count_text(v.get('failed'))} failed"
    ),
    "train": lambda v: (
        f"test accuracy {share_text(v.get('test_accuracy'))}, "
        f"{share_text(v.get('nonzero_fraction'))} of the weights not zero"
    ),
    "merge": lambda v: f"{large_text(v.get('parameters'))} parameters, {size_text(v.get('bytes'))}",
    "prune": lambda v: _refit(v),
    "quantize": lambda v: _refit(v),
}


def _summary(verb: str, values: Mapping[str, Any]) -> str:
    return _SUMMARIES[verb](values)


def _refit(values: Mapping[str, Any]) -> str:
    before, after = share_text(values.get("accuracy_before_refit")), share_text(values.get("accuracy_after_refit"))
    return (
        f"{size_text(values.get('bytes_before'))} → {size_text(values.get('bytes_after'))}; accuracy "
        f"{share_text(values.get('accuracy_float'))} → {before}, {after} after the head was refitted"
    )


def _steps(document: Mapping[str, Any]) -> str:
    items = []
    for step in entries_of(document.get("steps")):
        plain = {key: value for key, value in step.items() if key != "verb" and value is not None}
        items.append(f"<li><b>{text(step.get('verb', 'step'))}</b> {plain_text(plain) if plain else ''}</li>")
    return section("What was done", f"<ol>{''.join(items)}</ol>" if items else "")


def _notes(document: Mapping[str, Any]) -> str:
    notes = document.get("notes")
    items = "".join(f"<li>{text(note)}</li>" for note in notes) if isinstance(notes, list) else ""
    return section("Notes", f"<ul>{items}</ul>" if items else "")


def _machine(document: Mapping[str, Any]) -> str:
    machine = mapping_in(document, "machine")
    if not machine:
        return ""
    shown = {
        "processor": text(machine.get("processor", "–")),
        "threads": plain_text(machine.get("threads")),
        "memory": size_text(machine.get("memory_bytes")),
        "system": text(machine.get("system", "–")),
        "Python": text(machine.get("python", "–")),
        "versions": plain_text(machine.get("versions")),
    }
    rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in shown.items())
    return section("Machine", f"<dl>{rows}</dl>", note="Latencies were measured here; on another device they differ.")
