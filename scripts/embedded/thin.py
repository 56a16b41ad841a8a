"""The student's first weights: a teacher that `featcache prune` narrowed to the architecture of the embedded backbone.

Cache, head and pruning are the package's own, on a few photos of each class at the student's side.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import featcache
from embedded.photos import Photos
from embedded.teachers import Teacher
from featcache.backbone.timm_import import import_timm

PER_CLASS = 20  # photos of each class
# What is removed, one after the other: work where it is done, on early and large maps, then parameters, which are late.
CUTS = (("macs", 0.3), ("parameters", 0.09))
_WHERE = "backbone.network."  # of a MODEL's tensors


def thinned(
    teacher: Teacher,
    weights: Path,
    photos: Photos,
    val: Photos,
    network: str,
    side: int,
    home: Path,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """Return weights of `network` that are the teacher's, the channels gone that the others can best take over from.

    Every step is kept in `home`; killed, it goes on. `SystemExit` where the widths that came out are not the network's.
    """  # fmt: skip
    home.mkdir(parents=True, exist_ok=True)
    file, cache, model = home / "teacher.safetensors", home / "cache", home / "model"
    if not file.exists():
        tensors = load_file(weights / f"{teacher.weights}.safetensors")
        headless = {name: one for name, one in tensors.items() if not name.startswith("classifier.")}
        save_file(headless, file, file_words(teacher.network, side, timm_kwargs={"pad_type": "same"}))
    if not model.exists():
        for split, shown in (("train", photos), ("val", val)):
            _write_photos(shown, home / "photos" / split)
        featcache.build_cache(home / "photos", cache, backbone=None, weights=file)
        with featcache.open_cache(cache) as opened:
            head = featcache.train_head(opened, head=featcache.LinearOptions(l2="auto")).head
            featcache.merge(head, cache=opened, out=model)
    for number, (target, amount) in enumerate(CUTS):
        narrow = home / f"narrow{number}"
        if not narrow.exists():
            say(f"prune: {amount:g} of the {target}")
            featcache.prune(model, cache=cache, out=narrow, target=target, amount=amount)
        model = narrow
    stored = load_file(model / "weights.safetensors")
    found = {name.removeprefix(_WHERE): one for name, one in stored.items() if name.startswith(_WHERE)}
    wanted = import_timm().create_model(network, num_classes=0).state_dict()
    other = [f"{name} {tuple(found[name].shape)}" for name in wanted if found[name].shape != wanted[name].shape]
    if other:
        raise SystemExit(f"pruning chose other widths than {network} has: {', '.join(other[:5])}; change its STAGES")
    return found


def file_words(network: str, side: int, **more: Any) -> dict[str, str]:
    """Return the metadata of a weights file whose network sees whole photos at `side` pixels; `more`: JSON values."""
    centred = {"mean": [0.5] * 3, "std": [0.5] * 3}
    size = {"height": side, "width": side, "resize": side, "interpolation": "bicubic", "crop_mode": "center"}
    words = {**centred, "preprocessing": {**size, **centred}, **more}
    return {"timm_model": network, **{name: json.dumps(value) for name, value in words.items()}}


def _write_photos(photos: Photos, place: Path) -> None:
    """Write the first photos of each class as an image folder, in place of what is there."""
    shutil.rmtree(place, ignore_errors=True)
    seen = [0] * len(photos.classes)
    for pixels, label in zip(photos.pixels, photos.labels.tolist(), strict=True):
        if seen[label] < PER_CLASS:
            folder = place / photos.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{seen[label]:03}.png")
            seen[label] += 1
