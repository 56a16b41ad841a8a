"""The same images, wherever they lie, make the same cache; a storage that is slow or busy costs time, not images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake import build
from many_places import SPLITS, save_to_disk, upload, write_parquet, write_photos, write_shards, write_tar
from object_storage import DENIED, OTHER_REGION, SLOW_DOWN, Answer, Fate, StorageProxy, make_public, new_bucket

from featcache.cache import open_cache
from featcache.datasets.scan import scan
from featcache.errors import InputError, MissingError, StorageError
from featcache.images.read import hash_files, read_image_bytes
from featcache.system import objects
from featcache.system.objects import ObjectPath

pytestmark = pytest.mark.objects

REMOTE = ("prefix", "csv", "web csv", "web list", "tars", "shards", "parquet")
LOCAL = ("folder", "tar", "shards", "json shards", "pattern", "parquet", "saved", "list")


class Forms:
    """The places of the same photos: `local` and `remote`, by the name of the form."""

    def __init__(self, home: Path, endpoint: str) -> None:
        self.home = home
        self.photos = write_photos(home / "folder")
        write_tar(home / "tar" / "photos.tar", self.photos)
        write_shards(home / "shards", self.photos)
        write_shards(home / "json shards", self.photos, label="json")
        write_parquet(home / "parquet", self.photos)
        save_to_disk(home / "saved", self.photos)
        rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in self.photos]
        (home / "folder" / "photos.csv").write_text("\n".join(["path,label,split", *rows]))
        (home / "folder" / "list.txt").write_text("# photos\n" + "\n".join(self.photos))
        self.local = {name: str(home / name) for name in LOCAL}
        self.local["pattern"] = str(home / "shards" / "{test,train,val}-{000000..000000}.tar")
        self.local["list"] = str(home / "folder" / "list.txt")
        self.bucket = new_bucket(endpoint)
        for name in ("folder", "tar", "shards", "parquet"):
            upload(home / name, self.bucket / name)
        for name in ("folder/photos.csv", "folder/list.txt", *(f"folder/{name}" for name in self.photos)):
            web = make_public(endpoint, self.bucket / name)
            if name.endswith((".csv", ".txt")):
                self.local[name] = web
        self.remote = {
            "prefix": f"{self.bucket}/folder",
            "csv": f"{self.bucket}/folder/photos.csv",
            "web csv": self.local.pop("folder/photos.csv"),
            "web list": self.local.pop("folder/list.txt"),
            "tars": f"{self.bucket}/tar/photos.tar",
            "shards": f"{self.bucket}/shards/{{test,train,val}}-000000.tar",
            "parquet": f"{self.bucket}/parquet",
        }


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Forms:
    """Return the same photos in every form; only to be read."""
    return Forms(tmp_path_factory.mktemp("forms"), s3_endpoint)


def content(cache: Path) -> tuple[object, ...]:
    """Return what a cache says of its images: the rows' digest, and digest, label and split of each image."""
    with open_cache(cache) as opened:
        samples = opened.samples()
        order = np.lexsort(samples.digests.T)
        classes = [samples.classes[label] for label in samples.labels[order]]
        return opened.content_digest(), samples.digests[order].tobytes(), classes, samples.splits[order].tolist()


@pytest.fixture(scope="module")
def wanted(forms: Forms, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    cache = tmp_path_factory.mktemp("wanted") / "cache"
    build(Path(forms.local["folder"]), cache)
    return content(cache)


@pytest.mark.parametrize("name", [name for name in LOCAL if name != "folder"])
def test_local_forms_make_the_same_cache(forms: Forms, wanted: object, name: str, tmp_path: Path) -> None:
    """Rows, digests, labels and splits are those of the folder; a build again reads nothing."""
    place = forms.local[name]
    report = build(place, tmp_path / "cache")  # type: ignore[arg-type]
    assert (report.extracted, report.failures) == (12, ())
    assert content(tmp_path / "cache") == wanted
    assert build(place, tmp_path / "cache").extracted == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REMOTE)
def test_remote_forms_make_the_same_cache_and_no_image_is_read_again(
    forms: Forms, wanted: object, name: str, tmp_path: Path, s3_proxy: StorageProxy
) -> None:
    """Requests are counted at the server: in the second build none is for an image's bytes."""
    place = forms.remote[name]
    report = build(place, tmp_path / "cache")  # type: ignore[arg-type]
    assert (report.extracted, report.failures) == (12, ())
    assert content(tmp_path / "cache") == wanted
    s3_proxy.reset()
    again = build(place, tmp_path / "cache")  # type: ignore[arg-type]
    assert (again.extracted, again.reused, s3_proxy.read(".jpg"), s3_proxy.read(".tar")) == (0, 12, [], [])
    if name == "prefix":
        assert len(s3_proxy.requests) == 1


def test_an_object_that_is_replaced_is_read_again_and_one_written_anew_is_not(
    tmp_path: Path, bucket: ObjectPath, s3_proxy: StorageProxy
) -> None:
    """The ETag decides, not the time."""
    photos = write_photos(tmp_path / "photos")
    upload(tmp_path / "photos", bucket / "photos")
    build(f"{bucket}/photos", tmp_path / "cache")  # type: ignore[arg-type]
    first, second = list(photos)[:2]
    (bucket / "photos" / first).write_bytes(photos[first])
    s3_proxy.reset()
    assert build(f"{bucket}/photos", tmp_path / "cache").extracted == 0  # type: ignore[arg-type]
    assert s3_proxy.read(".jpg") == []
    (bucket / "photos" / second).write_bytes(photos[first])
    build(f"{bucket}/photos", tmp_path / "cache")  # type: ignore[arg-type]
    assert len(s3_proxy.read(".jpg")) == 1
    with open_cache(tmp_path / "cache") as opened:
        assert len(np.unique(opened.samples().digests, axis=0)) == 11


def test_a_busy_storage_loses_no_image(forms: Forms, wanted: object, tmp_path: Path, s3_proxy: StorageProxy) -> None:
    """Every third request is refused with 503, the others come late."""
    s3_proxy.fate = lambda method, path, number: SLOW_DOWN if number % 3 == 2 else "pass"
    s3_proxy.latency = 0.01
    report = build(forms.remote["prefix"], tmp_path / "cache")  # type: ignore[arg-type]
    assert (report.extracted, report.failed) == (12, 0)
    assert content(tmp_path / "cache") == wanted
    assert len(s3_proxy.requests) > 18


def test_an_image_that_vanishes_after_the_listing_is_one_failure(
    tmp_path: Path, bucket: ObjectPath, s3_proxy: StorageProxy
) -> None:
    """As is one that the storage denies; the others have their rows."""
    photos = write_photos(tmp_path / "photos")
    upload(tmp_path / "photos", bucket / "photos")
    gone, denied = list(photos)[3], list(photos)[7]

    def fate(method: str, path: str, number: int) -> Fate:
        if method == "GET" and path.endswith(gone):
            return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if method == "GET" and path.endswith(denied):
            return DENIED
        return "pass"

    s3_proxy.fate = fate
    report = build(f"{bucket}/photos", tmp_path / "cache")  # type: ignore[arg-type]
    assert (report.extracted, report.failed) == (10, 2)
    assert [path for path, _ in report.failures] == [gone, denied]
    assert "no such object" in report.failures[0][1]
    assert "denies" in report.failures[1][1]
    s3_proxy.undisturbed()
    assert build(f"{bucket}/photos", tmp_path / "cache").extracted == 2  # type: ignore[arg-type]


def test_slow_answers_are_waited_for_together(tmp_path: Path, bucket: ObjectPath, s3_proxy: StorageProxy) -> None:
    """24 images of 0.3 s each would take two workers 3.6 s one after another."""
    write_photos(tmp_path / "photos", each=4)
    upload(tmp_path / "photos", bucket)
    s3_proxy.latency = 0.3
    report = build(str(bucket), tmp_path / "cache", workers=2)  # type: ignore[arg-type]
    assert report.extracted == 24
    assert report.extract_seconds < 2.4


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a storage up after two tries."""
    monkeypatch.setitem(objects.RETRIES, "max_retries", 1)
    objects._opened.cache_clear()
    yield
    objects._opened.cache_clear()


def test_a_storage_that_is_gone_ends_the_build_and_the_next_goes_on(
    tmp_path: Path, bucket: ObjectPath, s3_proxy: StorageProxy, few_tries: None
) -> None:
    """One line, not a million recorded failures."""
    write_photos(tmp_path / "photos")
    upload(tmp_path / "photos", bucket)
    listed = scan(str(bucket))
    s3_proxy.fate = lambda *_: SLOW_DOWN
    with pytest.raises(StorageError, match="must answer, got: SlowDown"):
        build(listed, tmp_path / "cache")  # type: ignore[arg-type]
    s3_proxy.undisturbed()
    report = build(str(bucket), tmp_path / "cache")  # type: ignore[arg-type]
    assert (report.extracted, report.failed) == (12, 0)


def test_refusals_of_a_storage_are_one_line(
    tmp_path: Path, bucket: ObjectPath, s3_proxy: StorageProxy, few_tries: None
) -> None:
    """A bucket that is not there, no rights, another region, nothing below a prefix."""
    with pytest.raises(MissingError, match="bucket 's3://tests-nowhere' must exist"):
        scan("s3://tests-nowhere/photos")
    with pytest.raises(InputError, match="at least one image"):
        scan(f"{bucket}/nothing")
    s3_proxy.fate = lambda *_: DENIED
    with pytest.raises(StorageError, match="must be open to these credentials"):
        scan(str(bucket))
    s3_proxy.fate = lambda *_: OTHER_REGION
    with pytest.raises(StorageError, match="set AWS_REGION"):
        scan(str(bucket))


@pytest.mark.parametrize(
    "url",
    ["https://me:secret@host/list.csv", "s3://me:secret@bucket/x", "https://host/list.csv?X-Amz-Signature=secret"],
)
def test_urls_with_secrets_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(InputError) as raised:
        scan(url)
    assert "secret@" not in str(raised.value)
    assert "=secret" not in str(raised.value)


def test_a_list_may_name_other_places_but_no_secrets(forms: Forms, tmp_path: Path) -> None:
    """A list on the disk of URLs; folders of the URLs are the classes."""
    names = [name for name in forms.photos if name.startswith("val/")]
    web = forms.remote["web list"].removesuffix("list.txt")
    (tmp_path / "urls.txt").write_text("\n".join(f"{web}{name}" for name in names))
    listing = scan(tmp_path / "urls.txt")
    assert (len(listing), listing.classes) == (4, ("cat", "dog"))
    assert read_image_bytes(listing.absolute(0)) == forms.photos[names[0]]
    (tmp_path / "urls.txt").write_text(f"{web}{names[0]}?token=secret\n")
    with pytest.raises(InputError, match="line 1") as raised:
        scan(tmp_path / "urls.txt")
    assert "=secret" not in str(raised.value)


def test_a_listing_that_grows_and_shrinks_is_read_as_it_is(tmp_path: Path, bucket: ObjectPath) -> None:
    """Objects come and go while pages of the listing are read: the rest is all there, once."""
    photos = write_photos(tmp_path / "photos")
    upload(tmp_path / "photos", bucket)
    listing = scan(str(bucket))
    (bucket / next(iter(photos))).unlink()
    (bucket / "train" / "cat" / "99.jpg").write_bytes(next(iter(photos.values())))
    report = build(listing, tmp_path / "cache")  # type: ignore[arg-type]
    assert (report.images, report.extracted, report.failed) == (12, 11, 1)
    report = build(str(bucket), tmp_path / "cache", dataset=bucket.name)  # type: ignore[arg-type]
    assert (report.images, report.extracted, report.failed) == (12, 1, 0)


def test_a_cache_of_a_prefix_names_it_and_needs_it(forms: Forms, tmp_path: Path, s3_proxy: StorageProxy) -> None:
    """Images that were moved to another place are found there by `--images`."""
    build(forms.remote["prefix"], tmp_path / "cache")  # type: ignore[arg-type]
    with open_cache(tmp_path / "cache") as opened:
        samples = opened.samples()
        assert (samples.dataset, samples.root) == ("folder", forms.remote["prefix"])
        samples.require_images()
        with opened.images_at(forms.local["folder"]):
            assert opened.samples().sources([0])[0]() == forms.photos["test/cat/00.jpg"]
        with pytest.raises(MissingError, match="must lie in"), opened.images_at(f"{forms.bucket}/elsewhere"):
            pass
    stored = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"a secret of the tests" not in stored


def test_equal_bytes_are_equal_whatever_holds_them(forms: Forms) -> None:
    """Read by path alone, as a worker of another process reads."""
    for place in (*forms.local.values(), *forms.remote.values()):
        listing = scan(place)
        hashed = hash_files(listing.absolute_paths(np.arange(len(listing))))
        assert not hashed.failures
        assert len({digest.tobytes() for digest in hashed.digests}) == 12
        assert [int((listing.given_splits == code).sum()) for code in range(len(SPLITS))] == [4, 4, 4]
