"""`ObjectPath`: names, reading, writing once, listing, and what a refusal says."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from featcache.errors import ExistsError, InputError, MissingError, StorageError
from featcache.system.objects import ObjectPath, is_url, place_of

pytestmark = pytest.mark.objects


def test_names_are_those_of_paths() -> None:
    """A URL's last part, its ending, what lies above; a bucket is above all."""
    place = ObjectPath("s3://photos//cats/tom.JPG/")
    assert (str(place), place.name, place.stem, place.suffix) == ("s3://photos/cats/tom.JPG", "tom.JPG", "tom", ".JPG")
    assert (place.parent.parent, place.parent.parent.parent) == (ObjectPath("s3://photos"), ObjectPath("s3://photos"))
    assert place.relative_name(ObjectPath("s3://photos")) == "cats/tom.JPG"
    assert pickle.loads(pickle.dumps(place)) == place


def test_place_of_tells_urls_from_paths() -> None:
    """A path stays a path, whatever colons it holds; an unknown scheme is refused by name."""
    assert place_of("a:b/c") == Path("a:b/c")
    assert place_of("s3://bucket/x") == ObjectPath("s3://bucket/x")
    assert not is_url("c:/photos")
    with pytest.raises(InputError, match="ftp://host/x"):
        place_of("ftp://host/x")


def test_object_is_created_once(bucket: ObjectPath) -> None:
    """The second who creates it is refused, and the first's bytes stay."""
    place = bucket / "a b" / "ä.jpg"
    place.create(b"first")
    with pytest.raises(ExistsError, match="must not exist yet"):
        place.create(b"second")
    data, status = place.read()
    assert (data, status.size, place.status()) == (b"first", 5, status)
    assert place.read_ranges([0, 3], [2, 5]) == [b"fi", b"st"]
    place.write_bytes(b"third")
    assert place.status().etag != status.etag
    place.unlink()
    assert not place.exists()


def test_walk_lists_what_lies_below(bucket: ObjectPath) -> None:
    """Names that only begin alike lie elsewhere; a listing can go on behind a name."""
    for name in ("x/a", "x/b/c", "x-other", "y"):
        (bucket / name).create(name.encode())
    assert [str(place) for place, _ in (bucket / "x").walk()] == [f"{bucket}/x/a", f"{bucket}/x/b/c"]
    assert [place.name for place, _ in bucket.walk(after="x/a")] == ["c", "y"]
    assert bucket.children() == (["x"], ["x-other", "y"])


def test_refusals_say_what_is_missing(bucket: ObjectPath) -> None:
    """An object, a bucket, a range beyond the end, a server that is not there."""
    with pytest.raises(MissingError, match=r"nothing.*must be in its storage"):
        (bucket / "nothing").read_bytes()
    with pytest.raises(MissingError, match="bucket 's3://tests-nowhere' must exist"):
        list(ObjectPath("s3://tests-nowhere").walk())
    (bucket / "short").create(b"x")
    with pytest.raises(StorageError, match="must answer, got: (416|InvalidRange)"):
        (bucket / "short").read_range(3, 9)
