"""Jobs of the studio: commands as processes, queued, cancelled, logged, picked up after a kill; images that come in."""

from __future__ import annotations

import io
import json
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from studio_client import Client, draw_coloured, open_studio, studio_process

from featcache.cache import open_cache
from featcache.errors import InputError
from featcache.serve.refusals import RefusedError
from featcache.serve.studio.commands import FEATCACHE_ONCE_TOLD as COMMAND
from featcache.serve.studio.steps import ship_steps
from featcache.serve.studio.uploads import UploadBounds, safe_path, unpack_images
from featcache.serve.studio.workspace import Workspace

SMALL = {"weights": "random:0", "engine": "torch"}


def begin(client: Client, **values: object) -> int:
    status, job = client.send("/api/jobs", **values)
    assert status == 201, job
    return int(job["id"])


def put(client: Client, path: str, data: bytes) -> tuple[int, dict[str, object]]:
    status, answer, _ = client.request("PUT", path, data)
    return status, json.loads(answer)


def test_dropped_images_keep_their_class_folders_and_broken_ones_are_listed(tmp_path: Path) -> None:
    photos = draw_coloured(tmp_path / "photos", each=4)
    with open_studio(tmp_path / "work") as client:
        for file in sorted(photos.rglob("*.png")):
            name = file.relative_to(photos).as_posix()
            assert put(client, f"/api/images/mine/file?path={name}", file.read_bytes())[0] == 200
        assert put(client, "/api/images/mine/file?path=red/broken.jpg", b"no image")[0] == 200
        job = client.finished(begin(client, kind="build", name="mine", **SMALL))
        assert (job["state"], job["error"]) == ("done", None)
        assert (job["result"]["extracted"], job["result"]["failed"]) == (8, 1)
        (entry,) = client.json("/api/datasets")
        dataset = client.json(f"/api/datasets/{entry['id']}")
        assert (dataset["classes"], dataset["images"]) == (["green", "red"], 8)
        assert [one["path"] for one in dataset["failures"]] == ["red/broken.jpg"]
        assert "not an image file" in dataset["failures"][0]["reason"]
        assert f"featcache build {tmp_path}/work/images/mine" in client.get(f"/api/jobs/{job['id']}/log")[1].decode()


def test_a_job_that_cannot_be_done_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with open_studio(tmp_path / "work") as client:
        status, answer = client.send("/api/jobs", kind="build", name="none", images=str(tmp_path / "gone"))
        assert (status, answer["error"].partition(",")[0]) == (404, f"there must be images in '{tmp_path}/gone'")
        job = client.finished(begin(client, kind="build", name="none", images=str(tmp_path / "empty")))
        assert job["state"] == "failed" and "must hold at least one image" in job["error"]


def test_one_job_runs_at_a_time_and_both_can_be_cancelled(tmp_path: Path) -> None:
    photos = draw_coloured(tmp_path / "photos", each=2)
    with open_studio(tmp_path / "work") as client:
        first, second = (begin(client, kind="build", name=name, images=str(photos), **SMALL) for name in ("one", "two"))
        while client.json(f"/api/jobs/{first}")["state"] == "queued":
            time.sleep(0.01)
        assert client.json(f"/api/jobs/{second}")["state"] == "queued"
        assert client.send(f"/api/jobs/{second}/cancel")[1]["state"] == "cancelled"
        assert client.send(f"/api/jobs/{first}/cancel")[0] == 200
        assert client.finished(first, seconds=15)["state"] == "cancelled"
        assert client.send(f"/api/jobs/{first}/cancel")[0] == 409
        assert client.send("/api/jobs/77/cancel")[0] == 404


def test_a_process_that_is_not_told_to_begin_ends() -> None:
    """Its server was killed before it had written down which process that is: the next one begins the step again."""
    done = subprocess.run(
        [*COMMAND, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the studio has ended\n")
    done = subprocess.run([*COMMAND, "--version"], input=".", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:9]) == (0, "featcache")


@pytest.mark.slow
def test_a_killed_server_leaves_its_job_to_the_next_one(tmp_path: Path) -> None:
    """Two jobs are answered, the server is killed while the first runs: both are done in the end, once each."""
    photos = draw_coloured(tmp_path / "photos", each=3)
    with studio_process(tmp_path / "work") as (process, client):
        jobs = [begin(client, kind="build", name=name, images=str(photos), **SMALL) for name in ("one", "two")]
        while client.json(f"/api/jobs/{jobs[0]}")["state"] == "queued":
            time.sleep(0.01)
        process.kill()
    with open_studio(tmp_path / "work") as client:
        assert [client.finished(job)["state"] for job in jobs] == ["done", "done"]
    for name in ("one", "two"):
        with open_cache(tmp_path / "work" / "caches" / name) as cache:
            assert len(cache.samples()) == 6


def test_a_budget_puts_compress_between_merge_and_export(workspace: Path) -> None:
    """What is exported is then the small model; an earlier search of the same name is begun anew."""
    asked = {
        "name": "first", "cache": "caches/colours", "labelled": "first-labelled", "formats": ["onnx", "web"],
        "compress": True, "max_drop": 0.02, "max_minutes": 3.0,
    }  # fmt: skip
    steps = ship_steps(Workspace(workspace), asked)
    assert [step.name for step in steps] == ["train", "merge", "compress", "export"]
    small = str(workspace / "models" / "first-small")
    assert {"--max-drop", "0.02", "--max-minutes", "3.0", "--overwrite"} <= set(steps[2].arguments)
    assert steps[2].arguments[steps[2].arguments.index("--out") + 1] == small
    assert steps[3].arguments[1] == small and "onnx,web" in steps[3].arguments
    steps = ship_steps(Workspace(workspace), {**asked, "compress": False})
    assert [step.name for step in steps] == ["train", "merge", "export"]
    assert steps[2].arguments[1] == str(workspace / "models" / "first")


@pytest.mark.slow
def test_labels_become_a_bundle_that_classifies(workspace: Path, coloured: Path) -> None:
    with open_studio(workspace) as client:
        number = client.json("/api/datasets")[0]["id"]
        order = client.json(f"/api/datasets/{number}/samples")["samples"]
        samples = client.send(f"/api/datasets/{number}/samples", samples=order)[1]
        for name in ("red", "green", "blue"):
            client.send(f"/api/datasets/{number}/classes", name=name)
            client.label(number, [one["id"] for one in samples if one["path"].startswith(name)], name)
        job = client.finished(begin(client, kind="ship", name="first", dataset=number, l2=0.01))
        assert (job["state"], job["error"]) == ("done", None)
        for kind in ("heads", "models", "bundles"):
            assert [one["name"] for one in client.json(f"/api/{kind}")] == [f"{kind}/first"]
        for name in ("red", "green", "blue"):
            data = (coloured / "images" / "colours" / f"{name}-000.png").read_bytes()
            status, found = client.post("/api/classify?bundle=bundles/first", data)
            assert (status, found["label"]) == (200, name)
        status, data = client.get("/api/bundle.zip?name=bundles/first")
        assert status == 200
        assert "manifest.json" in {name.rpartition("/")[2] for name in zipfile.ZipFile(io.BytesIO(data)).namelist()}
        assert client.post("/api/classify?bundle=bundles/first", b"text")[0] == 415
        assert client.post("/api/classify?bundle=../first", b"text")[0] == 404


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_is_unpacked_without_what_would_leave_its_folder(tmp_path: Path) -> None:
    data = zipped({"cat/1.png": b"1", "../out.png": b"2", "/abs.png": b"3", "dog/.hidden": b"4", "a\\b.png": b"5"})
    with open_studio(tmp_path / "work") as client:
        status, answer = put(client, "/api/images/mine/zip", data)
    assert (status, answer["files"]) == (200, 1)
    assert len(answer["left_out"]) == 4  # type: ignore[arg-type]
    made = [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.suffix == ".png"]
    assert made == ["work/images/mine/cat/1.png"]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(zipped({"a.png": bytes(50_000_000)}))
    with pytest.raises(RefusedError, match="200 times its own") as refused:
        unpack_images(bomb, tmp_path / "out", aside=tmp_path / "aside", bounds=UploadBounds())
    assert refused.value.status == 413
    many = tmp_path / "many.zip"
    many.write_bytes(zipped({f"{number}.png": b"x" for number in range(20)}))
    with pytest.raises(RefusedError, match="at most 10 files"):
        unpack_images(many, tmp_path / "out", aside=tmp_path / "aside", bounds=UploadBounds(zip_entries=10))
    (tmp_path / "text.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="must be a zip file"):
        unpack_images(tmp_path / "text.zip", tmp_path / "out", aside=tmp_path / "aside", bounds=UploadBounds())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/x.png", "a//b.png", "a/../b.png", ".x.png", "a/.b", "x\0.png", "a\nb.png", "c:\\x.png", "a\\b", "",
     " ", "x/", "a/b/c/d/e/f/g/h/i.png", "x" * 241, "a\u2028b.png", "x."],
)  # fmt: skip
def test_a_name_that_could_leave_its_folder_or_hide_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a file's name must be"):
        safe_path(name)


@pytest.mark.parametrize("name", ["<script>.png", "__proto__/x.png", "caf\u00e9/猫.png", "a b/c'd.png"])
def test_a_strange_name_is_a_name(name: str) -> None:
    assert safe_path(name).as_posix() == name
