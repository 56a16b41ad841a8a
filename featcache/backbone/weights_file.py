"""What a safetensors file says of its tensors without reading them: no torch, and no time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import WeightsError

# Numbers that were counted, not learned: the statistics of batch norm, the tables of window attention.
_COUNTED = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "position_ids")


@dataclass(frozen=True, slots=True)
class WeightsHeader:
    """The header of a safetensors file. `shapes`: of each tensor by name; `bytes`: the file's."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    bytes: int

    def parameters(self, *, without: str | None) -> int:
        """Return how many numbers were learned, but for those of the layer `without`, the classifier."""
        return sum(
            math.prod(shape)
            for name, shape in self.shapes.items()
            if not name.endswith(_COUNTED) and not (without and name.startswith(f"{without}."))
        )

    def features_into(self, classifier: str | None) -> int | None:
        """Return how many features the layer `classifier` reads, None where the file has no such matrix."""
        shape = self.shapes.get(f"{classifier}.weight", ())
        return shape[1] if len(shape) > 1 else None


def read_header(path: Path) -> WeightsHeader:
    """Return the header of the safetensors file `path`.

    Raises `WeightsError` where it is none, is cut short, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        return WeightsHeader(shapes, metadata, path.stat().st_size)
    except (SafetensorError, OSError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise WeightsError(
            f"{str(path)!r} must be a whole safetensors file ({reason}): remove it and get it again"
        ) from error
