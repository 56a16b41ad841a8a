"""What a user asks a cache to hold."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks a cache to hold; None means "as the cache has it", or the default for a new one.

    `backbone`: timm name or ``hf-hub:`` id, or ``auto`` until `featcache.extract.auto_backbone` has chosen one.
    `weights`: a ``.safetensors`` file, ``random:SEED``, or None for the hub. `mean`, `std`: per channel, instead of the
    backbone's own. `outputs`: names of what to store. `views`: stored views per image, `view_seed` seeding all but the
    plain one. `decoder`: ``fast`` or ``pillow``. `engine`: ``openvino``, ``onnxruntime``, ``torch``; `precision`:
    ``fp32``, ``bf16``, …; `dtype`: ``float16`` or ``float32``. `input`: the
    kind of what the rows are of, None for images; `input_options`: settings of that kind alone.
    """

    backbone: str | None = None
    weights: str | None = None
    model_kwargs: Mapping[str, Any] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    outputs: tuple[str, ...] | None = None
    views: int | None = None
    view_seed: int | None = None
    decoder: str | None = None
    dct_scaling: bool | None = None
    engine: str | None = None
    precision: str | None = None
    dtype: str | None = None
    input: str | None = None
    input_options: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, a weights file and a backbone's directory as its absolute path."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        if self.input is not None and self.backbone is not None and os.path.isdir(self.backbone):
            values["backbone"] = os.path.abspath(self.backbone)
        if self.weights is not None and not self.weights.startswith("random:"):
            values["weights"] = os.path.abspath(self.weights)
        return {name: value for name, value in values.items() if value is not None}

    def adopting(self, stored: Mapping[str, Any]) -> Request:
        """Return this request with what it leaves open taken from a cache's stored one.

        Naming another backbone leaves nothing of the stored backbone's weights and options to adopt.
        """
        mine = self.to_json()
        tied = {"weights", "model_kwargs", "mean", "std", "outputs", "input_options"}
        if "backbone" in mine and mine["backbone"] != stored.get("backbone"):
            stored = {name: value for name, value in stored.items() if name not in tied}
        options = {**stored.get("input_options", {}), **mine.get("input_options", {})}
        return Request.from_json({**stored, **mine, **({"input_options": options} if options else {})})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """Return the request that `to_json` wrote."""
        tuples = {name: tuple(values[name]) for name in ("mean", "std", "outputs") if name in values}
        return cls(**{**values, **tuples})


def file_stamp(path: str | os.PathLike[str]) -> list[int] | None:
    """Return what names a file's content without a look at it; None where there is none.

    An edit of the same size with its mtime put back still moves the ctime.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None  # whoever opens it will say what is wrong with it
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def first_given(*values: Any) -> Any:
    """Return the first of `values` that is not None."""
    return next(value for value in values if value is not None)
