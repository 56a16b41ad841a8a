"""Tars of images as a `Listing`: WebDataset shards with a label beside each image, or class folders within a tar."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from featcache.datasets.container_listing import ContainedImage, listing_of_contained, unreadable
from featcache.datasets.container_splits import container_splits
from featcache.datasets.folder import scan_folder
from featcache.datasets.listing import Listing, Task
from featcache.datasets.splits import NO_SPLIT, SPLITS
from featcache.datasets.walk import FolderFiles, is_litter, sort_file
from featcache.errors import AccessError, FeatcacheError, FormatError, InputError, MissingError, ReadError
from featcache.system.json import parse_json
from featcache.system.sources.interface import FileStat
from featcache.system.sources.parts import PartedFile, open_parts
from featcache.system.sources.tar import Member, TarWalk, member_stat
from featcache.system.sources.tar_index import TarIndex, keep_index, kept_index
from featcache.system.threads import processor_count

LABEL_FIELDS = ("label", "cls", "class", "class_name", "category")
_REMOTE_THREADS = 16
_LARGEST_LABEL = 1 << 20


@dataclass(slots=True)
class _Tar:
    """What one tar holds: `images`: name → stat; `labels`: what `_key` gives of a name → those of the sample."""

    images: dict[str, FileStat] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    ignored: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def scan_tars(
    root: str,
    names: Sequence[str],
    scanned_ns: int,
    *,
    task: Task | None,
    splits: bool,
    known: frozenset[str],
) -> Listing:
    """Return the listing of the images in the tars `names` below `root`.

    The label is the text of ``KEY.cls`` (an index or a name), or the first of ``label``, ``cls``, ``class``,
    ``class_name``, ``category`` in ``KEY.json``; where no image has one, the folders within the tars say it. Splits are
    said by the tars' names where these name several. A tar that breaks off is one failure; what stands before is read.
    Raises `InputError` for a task that needs labels where there are none.
    """
    remote = "://" in root
    with ThreadPoolExecutor(_REMOTE_THREADS if remote else processor_count()) as pool:
        tars = list(pool.map(partial(_list_tar, root), names))
    codes = container_splits(names) if splits else {}
    if any(tar.labels for tar in tars):
        return _labelled(root, names, tars, codes, scanned_ns, task)
    if task not in (None, "classification"):
        raise InputError(f"task {task!r} needs labels beside the images, as KEY.cls or KEY.json; the tars have none")
    files = FolderFiles()
    for name, tar in zip(names, tars, strict=True):
        files.ignored += tar.ignored
        files.failures += tar.failures
        folders: dict[str, tuple[list[str], list[int]]] = {}
        for member, stat in tar.images.items():
            folder = member.rpartition("/")[0]
            if name in codes:
                folder = f"{SPLITS[codes[name]]}/{folder}".rstrip("/")
            paths, numbers = folders.setdefault(folder, ([], []))
            paths.append(f"{name}/{member}")
            numbers.extend(stat)
        for folder, (paths, numbers) in folders.items():
            files.add(folder, paths, numbers)
    return scan_folder(root, files, scanned_ns, splits=splits, known=known)


def _labelled(
    root: str, names: Sequence[str], tars: Sequence[_Tar], codes: dict[str, int], scanned_ns: int, task: Task | None
) -> Listing:
    images = [
        ContainedImage(f"{name}/{member}", stat, tar.labels.get(_key(member), []), codes.get(name, NO_SPLIT))
        for name, tar in zip(names, tars, strict=True)
        for member, stat in _main_images(tar).items()
    ]
    ignored = sum(tar.ignored + len(tar.images) for tar in tars) - len(images)
    failures = [failure for tar in tars for failure in tar.failures]
    return listing_of_contained(root, images, scanned_ns, task=task, ignored=ignored, failures=failures)


def _main_images(tar: _Tar) -> dict[str, FileStat]:
    """Return the images but those beside another of their sample, such as ``7.mask.png`` beside ``7.jpg``."""
    plain = {_key(name) for name in tar.images if name.rpartition("/")[2].count(".") == 1}
    return {
        name: stat
        for name, stat in tar.images.items()
        if name.rpartition("/")[2].count(".") == 1 or _key(name) not in plain
    }


def _list_tar(root: str, name: str) -> _Tar:
    """Return what the tar `name` holds, by its headers and labels alone."""
    tar = _Tar()
    try:
        file = open_parts(f"{root}/{name}")
        index = kept_index(file)
        if index is None:
            index = _walked(name, file)
            keep_index(file, index)
    except (FormatError, MissingError, AccessError, ReadError) as error:
        tar.failures.append((name, unreadable(error)))
        return tar
    images = set(index.values["images"])
    tar.images = {member.name: member_stat(file, member) for member in index.members if member.name in images}
    tar.labels = dict(index.values["labels"])
    tar.ignored = int(index.values["ignored"])
    tar.failures = [(path, reason) for path, reason in index.values["failures"]]
    return tar


def _walked(name: str, file: PartedFile) -> TarIndex:
    """Return the members of the tar `file`, and beside them what of them are images and labels."""
    tar, others = _Tar(), FolderFiles()
    members, images = [], []
    with file.open() as opened:
        walk = TarWalk(opened)
        for member in walk:
            members.append(member)
            folder, _, last = member.name.rpartition("/")
            if folder and any(map(is_litter, folder.split("/"))):
                continue
            if last.lower().endswith((".cls", ".json")):
                tar.ignored += 1
                _add_label(tar, name, walk, member)
            elif sort_file(member.name, last, others):
                images.append(member.name)
    failures = [*tar.failures, *((f"{name}/{member}" if member else name, why) for member, why in walk.failures)]
    values = {
        "images": images,
        "labels": tar.labels,
        "ignored": tar.ignored + others.ignored + walk.ignored,
        "failures": [list(failure) for failure in failures],
    }
    return TarIndex(members, values)


def _add_label(tar: _Tar, name: str, walk: TarWalk, member: Member) -> None:
    if member.size > _LARGEST_LABEL:
        return
    data, key = walk.read(member), _key(member.name)
    if member.name.lower().endswith(".cls"):
        text = data.decode("utf-8", "replace").strip()
        if text:
            tar.labels[key] = [text]
        return
    try:
        values = parse_json(data)
    except (FeatcacheError, ValueError) as error:
        tar.failures.append((f"{name}/{member.name}", f"its label cannot be read: {error}"))
        return
    for label in LABEL_FIELDS if isinstance(values, dict) and key not in tar.labels else ():
        if (value := values.get(label)) is not None:
            listed = value if isinstance(value, list) else [value]
            tar.labels[key] = [str(one).strip() for one in listed if isinstance(one, str | int | float)]
            return


def _key(name: str) -> str:
    """Return what the files of one sample have in common: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]
