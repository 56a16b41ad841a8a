"""A kind of head of one's own in one file: distances to one point per class, registered, contract kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from featcache.errors import CorruptError, InputError
from featcache.heads import Head, load_head, register_head, save_head
from featcache.testing.heads import HeadContract


@register_head
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NearestPointHead(Head):
    """Logits are minus the Euclidean distances to `points` (n_classes, n_features), times `sharpness`."""

    kind: ClassVar[str] = "tests.nearest_point"
    points: np.ndarray
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        self.check_common()

    @property
    def num_features(self) -> int:
        return self.points.shape[1]

    def predict_logits(self, features: np.ndarray) -> np.ndarray:
        distances = np.linalg.norm(self.checked(features)[:, None] - self.points, axis=2)
        return (-self.sharpness * distances).astype(np.float32)

    def to_module(self) -> Any:
        raise InputError(f"a head to be merged must have a module form, got {self.kind!r}, which has none")

    def arrays(self) -> dict[str, np.ndarray]:
        return {"points": self.points}

    def options(self) -> dict[str, Any]:
        return {"sharpness": self.sharpness}

    @classmethod
    def from_state(cls, arrays: Mapping[str, Any], options: Mapping[str, Any], common: Mapping[str, Any]) -> Head:
        return cls(points=arrays["points"], **options, **common)

    def with_temperature(self, temperature: float) -> Head:
        return dataclasses.replace(self, sharpness=self.sharpness / temperature)


class TestNearestPointHead(HeadContract):
    def make_head(self, **common):
        return NearestPointHead(points=np.arange(12, dtype=np.float32).reshape(3, 4), **common)


def test_register_head_of_a_taken_kind_is_refused():
    """A built-in kind cannot be replaced, nor that of another class; the same class may be registered again."""
    for kind in ("linear", "tests.nearest_point", ""):
        with pytest.raises(InputError, match="a name of its own"):
            register_head(type("Impostor", (NearestPointHead,), {"kind": kind}))
    assert register_head(NearestPointHead) is NearestPointHead


def test_load_head_of_a_kind_that_names_a_module_imports_nothing(tmp_path):
    """A file decides between known kinds; a name that looks like a module is just a name that is not known."""
    path = save_head(NearestPointHead(classes=("a",), points=np.zeros((1, 2), np.float32)), tmp_path / "head")
    document = path / "head.json"
    document.write_text(document.read_text().replace('"tests.nearest_point"', '"this"'))
    with pytest.raises(CorruptError, match="import the module that registers it"):
        load_head(path)
