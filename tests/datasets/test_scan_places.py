"""Tars, Parquet files and saved data sets: what is read of them, and what becomes of odd and damaged ones."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import write_photo
from many_places import image_table, of_split, save_to_disk, write_parquet, write_photos, write_shards, write_tar

from featcache.datasets.place import data_set_name, images_place
from featcache.datasets.scan import scan
from featcache.errors import ImageError, InputError, MissingError
from featcache.images.read import read_image_bytes, read_image_file


@pytest.fixture
def some(tmp_path: Path) -> dict[str, bytes]:
    return write_photos(tmp_path / "photos")


def test_tar_members_stay_in_the_tar(tmp_path: Path, some: dict[str, bytes]) -> None:
    """Names that lead out are failures, links are ignored, nothing is unpacked."""
    data = next(iter(some.values()))
    place = tmp_path / "in" / "odd.tar"
    write_tar(place, {"./cat/a.jpg": data, "../../x.jpg": data, "/dog/b.jpg": data, "dog/c.jpg": data, "._d.jpg": b"x"})
    with tarfile.open(place, "a") as tar:
        link = tarfile.TarInfo("dog/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    listing = scan(place)
    assert listing.paths == ["odd.tar/cat/a.jpg", "odd.tar/dog/c.jpg"]
    assert [path for path, _ in listing.failures] == ["odd.tar/../../x.jpg", "odd.tar//dog/b.jpg"]
    assert listing.ignored == 2
    assert read_image_bytes(f"{place}/cat/a.jpg") == data
    for name in ("../../x.jpg", "dog/link.jpg", "cat", "cat/../cat/a.jpg"):
        with pytest.raises(ImageError, match="no such member"):
            read_image_bytes(f"{place}/{name}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "photos"]


@pytest.mark.parametrize("cut", [0.3, 0.62, 0.95])
def test_a_tar_cut_off_gives_what_stands_before_the_cut(tmp_path: Path, some: dict[str, bytes], cut: float) -> None:
    write_tar(tmp_path / "a.tar", some)
    whole = (tmp_path / "a.tar").read_bytes()
    end = sum(512 + -(-len(data) // 512) * 512 for data in some.values())
    (tmp_path / "a.tar").write_bytes(whole[: int(end * cut)])
    listing = scan(tmp_path / "a.tar")
    assert 0 < len(listing) < 12
    [(path, reason)] = listing.failures
    assert (path, "cut off" in reason, f"first {len(listing)} files" in reason) == ("a.tar", True, True)
    assert read_image_bytes(listing.absolute(len(listing) - 1)) == some[listing.paths[-1].removeprefix("a.tar/")]


def test_what_is_no_tar_is_one_failure_or_one_line(tmp_path: Path, some: dict[str, bytes]) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(InputError, match=r"at least one image.*a\.tar.*must be a tar"):
        scan(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", some)
    listing = scan(str(tmp_path / "{a,b,c}.tar"))
    assert (len(listing), [path for path, _ in listing.failures]) == (12, ["a.tar", "c.tar"])
    with pytest.raises(InputError, match="go up"):
        scan(str(tmp_path / "x-{9..3}.tar"))
    with pytest.raises(InputError, match="at most"):
        scan(str(tmp_path / "x-{0..99999999}.tar"))


def test_a_tar_that_is_replaced_is_read_anew(tmp_path: Path, some: dict[str, bytes]) -> None:
    """Its index is kept for later members, but not beyond the file that it is of."""
    first, second = list(some.values())[:2]
    write_tar(tmp_path / "a.tar", {"x.jpg": first})
    before = read_image_file(str(tmp_path / "a.tar/x.jpg"))
    (tmp_path / "a.tar").unlink()
    write_tar(tmp_path / "a.tar", {"other.jpg": first, "x.jpg": second})
    after = read_image_file(str(tmp_path / "a.tar/x.jpg"))
    assert (before[0], after[0]) == (first, second)
    assert before[1] != after[1]


def test_shards_with_masks_and_lists_of_labels(tmp_path: Path, some: dict[str, bytes]) -> None:
    """`7.mask.png` is not another image; a label in JSON may be a list, an index or missing."""
    data = next(iter(some.values()))
    members = {
        "0.jpg": data, "0.json": b'{"label": ["cat", "dog"]}', "1.jpg": data, "1.json": b'{"label": 3}',
        "2.jpg": data, "2.json": b'{"width": 3}', "3.jpg": data, "3.mask.png": data, "3.json": b"{",
    }  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    listing = scan(tmp_path / "a.tar")
    assert listing.paths == [f"a.tar/{i}.jpg" for i in range(4)]
    assert (listing.task, listing.classes) == ("multilabel", ("3", "cat", "dog"))
    assert listing.targets is not None
    assert listing.targets.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert [path for path, _ in listing.failures] == ["a.tar/3.json"]


def test_a_folder_of_tars_beside_images_is_named(tmp_path: Path, some: dict[str, bytes]) -> None:
    write_shards(tmp_path / "photos", some)
    listing = scan(tmp_path / "photos")
    assert len(listing) == 12
    assert any("3 files of many images beside the others left out" in note for note in listing.notes)
    write_shards(tmp_path / "shards", some)
    write_parquet(tmp_path / "shards", some)
    with pytest.raises(InputError, match="got both"):
        scan(tmp_path / "shards")


def test_a_parquet_file_without_image_bytes_is_refused_with_its_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": ["a.jpg"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column of image bytes.*image \(string\), label \(int64\)"):
        scan(tmp_path / "a.parquet")


def test_a_parquet_file_cut_off_is_one_failure(tmp_path: Path, some: dict[str, bytes]) -> None:
    """Alone it is refused; a damaged page fails its rows alone."""
    write_parquet(tmp_path / "p", some)
    whole = (tmp_path / "p" / "val-00000-of-00001.parquet").read_bytes()
    (tmp_path / "p" / "val-00000-of-00001.parquet").write_bytes(whole[:-100])
    listing = scan(tmp_path / "p")
    assert (len(listing), [path for path, _ in listing.failures]) == (8, ["val-00000-of-00001.parquet"])
    with pytest.raises(InputError, match=r"none of 1 file can be read, .*must be whole"):
        scan(tmp_path / "p" / "val-00000-of-00001.parquet")
    damaged = bytearray(whole)
    damaged[:400] = bytes(400)
    (tmp_path / "p" / "val-00000-of-00001.parquet").write_bytes(b"PAR1" + bytes(damaged[4:]))
    listing = scan(tmp_path / "p")
    assert (len(listing), listing.failures) == (12, ())
    with pytest.raises(ImageError, match="cannot be read: the file must be whole"):
        read_image_bytes(listing.absolute(8))
    assert read_image_bytes(listing.absolute(7)) in some.values()


def test_rows_are_read_in_any_order_and_nulls_fail(tmp_path: Path, some: dict[str, bytes]) -> None:
    """Back and forth across row groups; several byte columns are told apart by the path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = list(some.values())
    pq.write_table(pa.table({"image": [*data, None], "mask": [b"m"] * 13}), tmp_path / "a.parquet", row_group_size=5)
    listing = scan(tmp_path / "a.parquet")
    assert listing.paths[:2] == ["a.parquet/image/00", "a.parquet/image/01"]
    for row in (11, 0, 4, 5, 3, 11, 10):
        assert read_image_bytes(listing.absolute(row)) == data[row]
    with pytest.raises(ImageError, match="holds no bytes"):
        read_image_bytes(listing.absolute(12))
    assert read_image_bytes(tmp_path / "a.parquet/mask/3") == b"m"
    for name in ("3", "image/13", "image/x", "other/1"):
        with pytest.raises(ImageError, match="cannot be read"):
            read_image_bytes(tmp_path / "a.parquet" / name)


def test_hub_file_names_say_the_splits_where_there_are_several(tmp_path: Path, some: dict[str, bytes]) -> None:
    write_parquet(tmp_path / "data", some)
    assert sorted(set(scan(tmp_path / "data").given_splits.tolist())) == [0, 1, 2]
    assert set(scan(tmp_path / "data", splits=False).given_splits.tolist()) == {255}
    assert set(scan(tmp_path / "data" / "train-00000-of-00001.parquet").given_splits.tolist()) == {255}


def test_saved_data_sets_that_lead_elsewhere_are_refused(tmp_path: Path, some: dict[str, bytes]) -> None:
    """Names of files come from JSON that a stranger may have written."""
    save_to_disk(tmp_path / "saved", some)
    state = tmp_path / "saved" / "train" / "state.json"
    assert scan(tmp_path / "saved" / "train").classes == ("cat", "dog")
    for text, why in (
        ('{"_data_files": [{"filename": "../test/data-00000-of-00001.arrow"}]}', "its own folder"),
        ('{"_data_files": []}', "names none"),
        ("{", "must be the JSON"),
    ):
        state.write_text(text)
        with pytest.raises(InputError, match=why):
            scan(tmp_path / "saved")


def test_rows_with_a_path_instead_of_bytes_fail(tmp_path: Path, some: dict[str, bytes]) -> None:
    """What datasets keeps of files that it did not embed: such a path is not followed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_photo(tmp_path / "x.jpg", seed=1)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": str(tmp_path / "x.jpg")}], type=kind)
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    with pytest.raises(ImageError, match="holds no bytes"):
        read_image_bytes(scan(tmp_path / "a.parquet").absolute(0))


def test_members_are_read_by_path_alone_in_a_fresh_process(tmp_path: Path, some: dict[str, bytes]) -> None:
    """As predict and workers do; neither torch nor pyarrow is needed for a tar."""
    write_tar(tmp_path / "a.tar", some)
    name = next(iter(some))
    code = (
        "import hashlib, sys\nfrom featcache.images.read import read_image_bytes\n"
        "print(hashlib.sha256(read_image_bytes(sys.argv[1])).hexdigest())\n"
        "print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.tar" / name)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert out == [hashlib.sha256(some[name]).hexdigest(), "False", "False"]


def test_names_of_places(tmp_path: Path, some: dict[str, bytes]) -> None:
    """What a data set is called, and what its paths are relative to."""
    assert data_set_name("s3://bucket/photos") == "photos"
    assert data_set_name("s3://bucket") == "bucket"
    assert data_set_name("https://host/a/b%20c.csv") == "b c"
    assert data_set_name("gs://bucket/pets-{000..123}.tar") == "pets"
    assert data_set_name("gs://bucket/pets/{000..123}.tar") == "pets"
    place = images_place("gs://bucket/a/pets-{08..11}.tar")
    assert (place.root, place.files) == ("gs://bucket/a", tuple(f"pets-{i:02}.tar" for i in (8, 9, 10, 11)))
    with pytest.raises(InputError, match="a web server does not say"):
        images_place("https://host/photos")
    with pytest.raises(MissingError):
        images_place(tmp_path / "gone")


def test_class_labels_without_a_name_are_none(tmp_path: Path, some: dict[str, bytes]) -> None:
    """-1, as test splits of the hub have, is no class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = image_table(of_split(some, "val"))
    table = table.set_column(1, "label", pa.array([0, 1, -1, None], type=pa.int64()))
    pq.write_table(table, tmp_path / "a.parquet")
    assert scan(tmp_path / "a.parquet").labels.tolist() == [0, 1, -1, -1]
    assert json.loads(table.schema.metadata[b"huggingface"])
    assert io.BytesIO(next(iter(some.values()))).read(2) == b"\xff\xd8"
