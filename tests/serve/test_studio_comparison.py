"""Two heads, and two backbones, on the same val images: who is right where, and whether that may be chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from studio_client import Client, coloured_cache, open_studio

from featcache.cache import open_cache
from featcache.heads import LinearHead
from featcache.heads.io import save_head


@pytest.fixture
def labelled(workspace: Path):
    """A studio whose images all have the label of their name, and a second cache of the same images."""
    with open_studio(workspace) as client:
        (entry,) = client.json("/api/datasets")
        number = entry["id"]
        samples = client.label_by_name(number)
        yield client, number, samples


def save_constant(workspace: Path, name: str, *, label: str, fingerprint: str | None = None) -> None:
    """Write a head that says `label` of everything."""
    with open_cache(workspace / "caches" / "colours") as cache:
        size, own = cache.num_features, cache.fingerprint
    head = LinearHead(
        classes=("green", "red"), weight=np.zeros((2, size), np.float32), fingerprint=fingerprint or own,
        bias=np.array([label == "green", label == "red"], dtype=np.float32),
    )  # fmt: skip
    save_head(head, workspace / "heads" / name)


def compared(client: Client, number: int, first: str, second: str) -> dict:
    return client.json(f"/api/datasets/{number}/comparison?first={first}&second={second}")


def test_two_heads_of_which_each_knows_one_colour(labelled, workspace: Path) -> None:
    """What only one gets right are the images of its colour; the head of the moment is right everywhere."""
    client, number, samples = labelled
    save_constant(workspace, "green", label="green")
    save_constant(workspace, "red", label="red")
    save_constant(workspace, "foreign", label="red", fingerprint="0" * 64)
    listed = client.json(f"/api/datasets/{number}/contenders")
    assert [one["id"] for one in listed] == ["now", "head:heads/green", "head:heads/red"]
    val = [one for one in samples if one["split"] == "val"]
    of = {name: [one["id"] for one in val if one["path"].startswith(name)] for name in ("red", "green", "blue")}
    found = compared(client, number, "head:heads/green", "head:heads/red")
    assert (sorted(found["only_first"]), sorted(found["only_second"])) == (of["green"], of["red"])
    assert (found["first"]["correct"], found["first"]["held_out"]) == (len(of["green"]), len(val))
    found = compared(client, number, "now", "head:heads/red")
    assert found["first"]["correct"] == len(val)
    assert sorted(found["only_first"]) == sorted(of["green"] + of["blue"]) and found["only_second"] == []
    assert found["p"] == pytest.approx(2.0 ** (1 - len(found["only_first"])))
    assert client.get(f"/api/datasets/{number}/comparison?second=head:heads/foreign")[0] == 400
    for name in ("head:heads/none", "dataset:99", "dataset:x", "what"):
        assert client.get(f"/api/datasets/{number}/comparison?second={name}")[0] == 404


def test_another_backbone_is_judged_by_a_head_of_the_same_labels(labelled, workspace: Path) -> None:
    """The same images in a second cache, without any label there, and with images of its own: all val images count."""
    client, number, samples = labelled
    coloured_cache(workspace, each=40, classes=("red", "green", "blue"), name="more")
    listed = client.json(f"/api/datasets/{number}/contenders")
    (other,) = [one["id"] for one in listed if one["kind"] == "dataset"]
    found = compared(client, number, "now", other)
    shared = found["second"]["held_out"]
    assert 0 < shared <= sum(one["split"] == "val" for one in samples)
    assert found["first"]["held_out"] == shared
    assert found["second"]["correct"] == shared  # three colours are told apart by random weights, too
    assert (found["p"], found["only_first"], found["only_second"]) == (1.0, [], [])


def test_without_labelled_val_images_nothing_is_compared(workspace: Path) -> None:
    with open_studio(workspace) as client:
        (entry,) = client.json("/api/datasets")
        save_constant(workspace, "red", label="red")
        address = f"/api/datasets/{entry['id']}/comparison"
        assert client.get(f"{address}?first=head:heads/red&second=head:heads/red")[0] == 409
        status, answer = client.get(f"{address}?first=now&second=head:heads/red")
        assert status == 409 and b"label train images of two classes first" in answer
