"""The same photos in every form that `IMAGES` may have."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import write_photo

from featcache.system.objects import ObjectPath

CLASSES = ("cat", "dog")
SPLITS = ("test", "train", "val")


def write_photos(folder: Path, *, each: int = 2) -> dict[str, bytes]:
    """Write photos into ``SPLIT/CLASS/NN.jpg`` below `folder`; return name → bytes."""
    photos = {}
    for code, split in enumerate(SPLITS):
        for hue, label in enumerate(CLASSES):
            for i in range(each):
                name = f"{split}/{label}/{i:02}.jpg"
                write_photo(folder / name, seed=100 * code + 10 * hue + i, hue=hue)
                photos[name] = (folder / name).read_bytes()
    return photos


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a tar of plain files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def write_shards(folder: Path, photos: Mapping[str, bytes], *, label: str = "cls") -> None:
    """Write one WebDataset shard for each split, labels beside the images."""
    for split in SPLITS:
        members: dict[str, bytes] = {}
        for number, (name, data) in enumerate(item for item in photos.items() if item[0].startswith(split)):
            text = name.split("/")[1]
            members[f"{number:06}.jpg"] = data
            members[f"{number:06}.{label}"] = text.encode() if label == "cls" else json.dumps({"label": text}).encode()
        write_tar(folder / f"{split}-000000.tar", members)


def image_table(photos: Mapping[str, bytes], names: Sequence[str] = CLASSES) -> Any:
    """Return a table as Hugging Face writes it: images as structs, labels as indices into the names in its metadata."""
    import pyarrow as pa

    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    rows = [{"bytes": data, "path": name.rpartition("/")[2]} for name, data in photos.items()]
    images = pa.array(rows, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    labels = pa.array([names.index(name.split("/")[1]) for name in photos], type=pa.int64())
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)


def of_split(photos: Mapping[str, bytes], split: str) -> dict[str, bytes]:
    """Return the photos of one split."""
    return {name: data for name, data in photos.items() if name.startswith(f"{split}/")}


def write_parquet(folder: Path, photos: Mapping[str, bytes]) -> None:
    """Write one Parquet file for each split, several row groups in each."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        table = image_table(of_split(photos, split))
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=3)


def save_to_disk(folder: Path, photos: Mapping[str, bytes]) -> None:
    """Write a DatasetDict as `save_to_disk` does."""
    import pyarrow as pa

    names = {"train": "train", "val": "validation", "test": "test"}
    for split, called in names.items():
        place = folder / called
        place.mkdir(parents=True)
        table = image_table(of_split(photos, split))
        with (
            pa.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_split": called}
        (place / "state.json").write_text(json.dumps(state))
        (place / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(names.values())}))


def upload(folder: Path, place: ObjectPath) -> None:
    """Copy every file below `folder` into the storage."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (place / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
