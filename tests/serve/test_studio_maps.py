"""Maps of the features: principal components at once; neighbours as a job, and what becomes of its map later."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from studio_client import Client, coloured_cache, open_studio

from featcache.errors import CorruptError, DependencyError, InputError
from featcache.serve.studio.planes import (
    PlaneMap,
    make_map,
    neighbour_embedding,
    principal_components,
    read_map,
    write_map,
)


def separation(points: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of points whose nearest other one is of the same class."""
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((labels[distances.argmin(axis=1)] == labels).mean())


def test_neighbours_stay_together_where_two_components_cannot_tell_classes_apart() -> None:
    """Twelve clusters at the ends of twelve axes: no plane through them shows more than four apart."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 15)
    features = (4 * np.eye(12)[labels] + 0.3 * rng.normal(size=(180, 12))).astype(np.float32)
    points = neighbour_embedding(features)
    assert points.shape == (180, 2) and np.abs(points).max() == pytest.approx(1.0)
    assert separation(points, labels) > 0.95
    assert separation(principal_components(features), labels) < 0.85


def test_principal_components_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(200, 6)) @ np.diag([9, 5, 1, 1, 1, 1]) @ rng.normal(size=(6, 6))).astype(np.float32)
    points = principal_components(features)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    left, sizes, _ = np.linalg.svd(standard, full_matrices=False)
    for axis in range(2):
        assert abs(np.corrcoef(points[:, axis], left[:, axis] * sizes[axis])[0, 1]) > 0.999


def test_a_map_of_four_images_and_one_without_scikit_learn_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = coloured_cache(tmp_path, each=2)
    with pytest.raises(InputError, match="at least 5 different images, got 4"):
        make_map(cache, out=tmp_path / "map")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(DependencyError, match="needs scikit-learn, which is not installed: pip install"):
        make_map(cache, out=tmp_path / "map")
    assert not (tmp_path / "map").exists()


def test_another_file_is_no_map(tmp_path: Path) -> None:
    (tmp_path / "map").write_bytes(b"no map")
    with pytest.raises(CorruptError, match="must be a map"):
        read_map(tmp_path / "map")
    write_map(PlaneMap(np.zeros((2, 2), np.float32), np.zeros((3, 32), np.uint8), "x"), tmp_path / "map")
    with pytest.raises(CorruptError, match="it is none: make it again"):
        read_map(tmp_path / "map")


def plane(client: Client, number: int, kind: str) -> dict[str, object]:
    found = client.json(f"/api/datasets/{number}/map?kind={kind}")
    assert isinstance(found, dict)
    return found


def test_a_job_makes_the_map_and_images_that_came_or_went_are_counted(workspace: Path) -> None:
    """None before the job; all images after it; of a map without two of them, and with one unknown, that is said."""
    with open_studio(workspace) as client:
        (entry,) = client.json("/api/datasets")
        number = entry["id"]
        assert len(plane(client, number, "components")["points"]) == 90  # type: ignore[arg-type]
        before = plane(client, number, "neighbours")
        assert (before["made"], before["points"]) == (False, [None] * 90)
        status, job = client.send("/api/jobs", kind="map", dataset=number)
        assert status == 201
        done = client.finished(job["id"])
        assert (done["state"], done["error"], done["result"]["images"]) == ("done", None, 90)
        after = plane(client, number, "neighbours")
        assert (after["made"], after["missing"], after["gone"]) == (True, 0, 0)
        assert None not in after["points"]  # type: ignore[operator]
        place = workspace / "maps" / f"{number}.safetensors"
        made = read_map(place)
        digests = np.concatenate([made.digests[2:], np.full((1, 32), 7, np.uint8)])
        write_map(PlaneMap(made.points[1:], digests, made.fingerprint), place)
        later = plane(client, number, "neighbours")
        assert (later["missing"], later["gone"]) == (2, 1)
        assert later["points"].count(None) == 2  # type: ignore[attr-defined]
        write_map(PlaneMap(made.points, made.digests, "another network"), place)
        assert plane(client, number, "neighbours")["missing"] == 90
