"""What the folders of a data set mean: wrappers around it, splits, classes, and what belongs to none of these.

Names alone do not say it: ``train/`` beside ``car/`` is a class, ``train/`` beside ``val/`` a split, whatever stands
beside them. Whatever is not the plain reading is said in a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featcache.datasets.listing import Listing, counted, printable
from featcache.datasets.split_names import SplitName, split_name, together
from featcache.datasets.splits import NO_SPLIT, SPLITS
from featcache.datasets.walk import IMAGE_EXTENSIONS, FolderFiles, find_files

Parts = tuple[str, ...]  # a folder's path below the data set's


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What each folder with images means: its split's index or `NO_SPLIT`, its class or None; None: left out."""

    folders: Mapping[Parts, tuple[int, str | None] | None]
    notes: tuple[str, ...]


def scan_folder(
    root: str, scanned_ns: int, *, splits: bool, known: frozenset[str], extensions: frozenset[str] = IMAGE_EXTENSIONS
) -> Listing:
    """Return the listing of the folder `root`.

    `splits`: whether folders may be read as splits. `known`: names that are classes wherever they stand. `extensions`:
    of the files that are samples.
    """
    files = find_files(root, extensions)
    parts = [tuple(name.split("/")) if name else () for name in files.folders]
    meaning = _read(files, dict(zip(parts, files.counts, strict=True)), splits=splits, known=known)
    kept = [meaning.folders[folder] is not None for folder in parts]
    means = [meaning.folders[folder] or (NO_SPLIT, None) for folder in parts]
    names = [None if name is None else printable(name) for _, name in means]  # UTF-8, as every file of ours is
    classes = tuple(sorted({name for name in names if name is not None}))
    index: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    labels = np.array([index.get(name, -1) for name in names], dtype=np.int32)
    codes = np.array([code for code, _ in means], dtype=np.uint8)

    order = sorted(range(len(files.paths)), key=files.paths.__getitem__)
    folder = np.repeat(np.arange(len(files.folders)), files.counts)
    if not all(kept):
        order = [i for i in order if kept[folder[i]]]
    folder = folder[order]
    return Listing(
        root=root,
        task="classification",
        classes=classes,
        paths=[files.paths[i] for i in order],
        stats=np.array(files.numbers, dtype=np.int64).reshape(-1, 4)[order],
        labels=labels[folder],
        targets=None,
        given_splits=codes[folder],
        ignored=files.ignored + len(files.paths) - len(order),
        failures=tuple(files.failures),
        scanned_ns=scanned_ns,
        notes=meaning.notes,
    )


def _read(files: FolderFiles, counts: Mapping[Parts, int], *, splits: bool, known: frozenset[str]) -> _Meaning:
    """Return what folders with so many images each mean; `files`: what else there is."""
    notes = []
    wrapper = _wrapper(counts, splits=splits, known=known)
    if wrapper:
        notes.append(f"the classes are read from {_shown(wrapper)}, which wraps them")
    inside = {folder[len(wrapper) :]: folder for folder in counts}
    branches: dict[str, list[Parts]] = {}
    images: Counter[str] = Counter()
    for short, full in inside.items():
        if short:
            branches.setdefault(short[0], []).append(short[1:])
            images[short[0]] += counts[full]
    tops = sorted(branches)
    codes = _split_folders(branches, images, known) if splits else {}
    meaning: dict[Parts, tuple[int, str | None] | None] = {}
    if not codes:
        meaning = {full: (NO_SPLIT, short[0] if short else None) for short, full in inside.items()}
        if splits:
            notes += _notes_on_classes(set(branches) - known)
        if not tops and files.tables:
            notes.append(f"no class folders, but {printable(files.tables[0])}: name it as IMAGES to read its labels")
        if () in inside and tops:
            notes.append(f"{counted(counts[inside[()]], 'image')} beside the class folders without a label")
        return _Meaning(meaning, tuple(notes))
    depth = _wrapped_within({top: branches[top] for top in codes}, known)
    for short, full in inside.items():
        if not short or short[0] not in codes:
            meaning[full] = None
            continue
        rest = short[1 + depth[short[0]] :]
        meaning[full] = (codes[short[0]], rest[0] if rest else None)
    wrapped = [_shown((top, *branches[top][0][: depth[top]])) for top in sorted(codes) if depth[top]]
    if wrapped:
        notes.append(f"what is inside {' and '.join(wrapped)} is read as if it were one folder higher")
    notes += [f"{top}/ is read as the split {SPLITS[code]}" for top, code in codes.items() if _is_unclear(top)]
    left_out = [f"{printable(top)}/ ({counted(images[top], 'image')})" for top in tops if top not in codes]
    if () in inside:
        left_out.append(counted(counts[inside[()]], "image"))
    if left_out:
        named = " and ".join(f"{printable(top)}/" for top in sorted(codes))
        notes.append(f"{', '.join(left_out)} beside {named} left out: no name of a split, such as train, val or test")
    return _Meaning(meaning, tuple(notes))


def _wrapper(folders: Iterable[Parts], *, splits: bool, known: frozenset[str]) -> Parts:
    """Return the folders, one in another, that hold nothing but the data set, as a zip file is often unpacked."""
    wrapper = _common(folders, known)
    for depth, name in enumerate(wrapper):
        found = split_name(name) if splits else None
        if found is not None and found.plain:
            return wrapper[:depth]
    return wrapper


def _common(folders: Iterable[Parts], known: frozenset[str]) -> Parts:
    """Return the path that several folders have in common, up to a known class; () where images lie in that path."""
    listed = list(folders)
    if len(listed) < 2:
        return ()
    first, last = min(listed), max(listed)
    depth = 0
    while depth < min(len(first), len(last)) and first[depth] == last[depth]:
        depth += 1
    depth = next((above for above in range(depth) if first[above] in known), depth)
    return () if first[:depth] in listed else first[:depth]


def _split_folders(
    branches: Mapping[str, list[Parts]], images: Mapping[str, int], known: frozenset[str]
) -> dict[str, int]:
    """Return folder → index into `SPLITS` where the folders at the top are splits, {} where they are classes."""
    said = {top: found for top in branches if top not in known and (found := split_name(top)) is not None}
    if not said:
        return {}
    inner = {top: _classes_below(top, branches[top], known) for top in branches}
    plain = {top: found for top, found in said.items() if found.plain}
    loose = {
        top: found
        for top, found in said.items()
        if not found.plain
        and any(other.code != found.code and inner[top] & inner[name] for name, other in said.items())
    }
    chosen: dict[str, SplitName] = plain | loose
    if not chosen:
        return {}
    others = [top for top in branches if top not in chosen]
    below = set().union(*(inner[top] for top in chosen))
    if others:
        several = len({found.code for found in chosen.values()}) > 1
        same_classes = all(inner[top] and inner[top] <= below for top in others)
        few_and_flat = not any(inner[top] for top in others) and sum(images[top] for top in others) < sum(
            images[top] for top in chosen
        )
        if not below or not (several or same_classes or (few_and_flat and len(below) > 1 and len(others) == 1)):
            return {}
    return together(chosen)


def _classes_below(top: str, branches: Sequence[Parts], known: frozenset[str]) -> set[str]:
    """Return the names that would be classes if `top` were a split."""
    depth = _own_wrappers(top, branches)
    rests = [branch[depth:] for branch in branches]
    depth = len(_common([rest for rest in rests if rest], known))
    return {rest[depth] for rest in rests if len(rest) > depth}


def _own_wrappers(top: str, branches: Sequence[Parts]) -> int:
    """Return how many folders inside `top` only repeat its name, as in ``train/train/cat``."""
    depth = 0
    while all(len(branch) > depth and branch[depth].casefold() == top.casefold() for branch in branches):
        depth += 1
    return depth


def _wrapped_within(branches: Mapping[str, list[Parts]], known: frozenset[str]) -> dict[str, int]:
    """Return for each split folder how many folders inside it stand before the classes."""
    own = {top: _own_wrappers(top, below) for top, below in branches.items()}
    rests = {branch[own[top] :] for top, below in branches.items() for branch in below}
    common = len(_common((rest for rest in rests if rest), known))
    return {top: own[top] + (common if any(branch[own[top] :] for branch in branches[top]) else 0) for top in branches}


def _notes_on_classes(tops: Iterable[str]) -> list[str]:
    said = [top for top in sorted(tops) if (found := split_name(top)) is not None and found.plain]
    if not said:
        return []
    named = ", ".join(f"{printable(top)}/" for top in said)
    were = "was read as a class, not a split: rename it" if len(said) == 1 else "were read as classes: rename them"
    return [f"{named} {were}, or say so with --no-splits"]


def _is_unclear(top: str) -> bool:
    found = split_name(top)
    return found is not None and (found.evaluation or not found.plain)


def _shown(folders: Parts) -> str:
    return printable("/".join(folders)) + "/"
