"""Nothing phones home: the main job opens no connection, and leaves nothing of other people's in the user's home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_photo

SMALL = ("--backbone", "featcache_nano", "--weights", "random:0", "--engine", "torch")
JOB = (
    ("build", "photos", "--cache", "cache", *SMALL),
    ("train", "cache", "--out", "head"),
    ("merge", "head", "cache", "--out", "model"),
    ("quantize", "model", "--cache", "cache", "--out", "int8"),
    ("export", "int8", "--out", "bundle", "--cache", "cache", "--format", "onnx,openvino"),
    ("predict", "bundle", "photos"),
)
RUN = (
    "import sys\nfrom featcache.cli import main\n"
    f"for arguments in {JOB!r}:\n    sys.argv[1:] = arguments\n"
    "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, (arguments, end.code)\n"
)
# Every Python process of the job, children too, ends at the first use of a socket that leaves the machine.
GUARD = """
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[0] if event.startswith("socket.get") else arguments[1]
        if not isinstance(address, (str, bytes)) or event.startswith("socket.get"):
            os.write(2, f"a connection: {event} {address!r}\\n".encode())
            os._exit(99)
sys.addaudithook(refuse)
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Make the photos and an empty home; return the variables of a process that may speak to nobody."""
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(6):
            write_photo(tmp_path / "photos" / name / f"{i}.jpg", seed=100 * hue + i, hue=hue)
    (tmp_path / "home").mkdir()
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    paths = [str(tmp_path / "guard"), *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = ("FEATCACHE_HOME", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY", "HF_HUB_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "HOME": str(tmp_path / "home")}


def test_the_guard_ends_a_process_that_connects(job: dict[str, str]) -> None:
    """So that what passes under it has not connected."""
    code = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], env=job, capture_output=True, text=True, check=False)
    assert done.returncode == 99, done.stderr
    assert "a connection: socket.getaddrinfo" in done.stderr


@pytest.mark.long
@pytest.mark.slow
def test_the_main_job_opens_no_connection(job: dict[str, str], tmp_path: Path) -> None:
    """Build, train, merge, quantize, export, predict; where strace is there, compiled code is watched as well."""
    traced = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-e", "signal=none", "-o", "trace"]
    can_trace = shutil.which("strace") and not subprocess.run(["strace", "-qq", "-o", os.devnull, "true"]).returncode
    prefix = traced if can_trace else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", RUN], env=job, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "telemetry" not in done.stderr
    if prefix:
        calls = (tmp_path / "trace").read_text(encoding="utf-8", errors="replace").splitlines()
        assert not [call for call in calls if re.search(r"AF_INET|sendto\(", call)]
    assert [path.name for path in (tmp_path / "home").iterdir()] in ([], [".cache"])
    assert [path.name for path in (tmp_path / "home").glob(".cache/*")] in ([], ["featcache"])


@pytest.mark.long
@pytest.mark.slow
def test_the_main_job_needs_no_network(job: dict[str, str], tmp_path: Path) -> None:
    """In a network of its own without a route, not even to itself, it does the same."""
    alone = ["unshare", "--net", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network of its own cannot be made here")
    done = subprocess.run(
        [*alone, sys.executable, "-c", RUN], env=job, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "bundle" / "model.onnx").is_file()
