"""What each verb loads: a start costs what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from reports.report import draw, draw_classes

from featcache.cli.verbs import VERBS

HEAVY = ("torch", "torchvision", "timm", "openvino", "onnx", "onnxruntime", "sklearn", "scipy", "pandas", "pyarrow",
         "zarr", "rich", "huggingface_hub", "sympy", "matplotlib", "numpy", "PIL", "lmdb", "tqdm",
         *(f"featcache.cli.{file}" for file in VERBS))  # fmt: skip
CODE = (
    "import sys\nfrom featcache.cli import main\ntry:\n    main()\nfinally:\n"
    f"    import json\n    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
)


def loaded(folder: Path, *arguments: object) -> set[str]:
    """Run a verb and return which heavy modules it has loaded."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, their cache, and a bundle."""
    folder = tmp_path_factory.mktemp("imports")
    draw_classes(folder / "photos", "cat", "dog")
    for command in (
        ("build", "photos", "--cache", "cache"),
        ("train", "cache", "--out", "head"),
        ("merge", "head", "cache", "--out", "model"),
        ("export", "model", "--out", "bundle", "--cache", "cache"),
    ):
        loaded(folder, *command)
    return folder


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], {"rich", *(f"featcache.cli.{file}" for file in VERBS)}),
        (["--version"], {f"featcache.cli.{file}" for file in VERBS}),
        (["info", "--help"], {"rich", "featcache.cli.caches"}),
        (["info", "cache"], {"numpy", "lmdb", "featcache.cli.caches"}),
        (["build", "photos", "--cache", "cache"], {"numpy", "lmdb", "tqdm", "featcache.cli.caches"}),
        (
            ["build", "photos", "--cache", "cache", "--backbone", "auto"],
            {"numpy", "lmdb", "tqdm", "huggingface_hub", "featcache.cli.caches"},
        ),
        (["backbones"], {"numpy", "tqdm", "huggingface_hub", "featcache.cli.caches"}),
        (["train", "cache", "--out", "other"], {"numpy", "lmdb", "featcache.cli.heads"}),
        (["predict", "bundle", "photos/cat/0.jpg"], {"numpy", "PIL", "tqdm", "onnxruntime", "featcache.cli.use"}),
        (["evaluate", "bundle", "photos"], {"numpy", "PIL", "tqdm", "onnxruntime", "featcache.cli.use"}),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_verb_loads_what_it_needs_and_no_more(
    place: Path, arguments: list[str], allowed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Help loads no numpy, a cache that is looked at no decoder, no runtime and no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))  # whatever lies in the user's own
    assert loaded(place, *arguments) <= allowed


def test_new_images_are_added_without_timm(place: Path) -> None:
    """The network that was compiled for the cache is opened as it was kept; torch is there for its resize alone."""
    draw(place / "photos" / "cat" / "new.jpg", seed=77)
    allowed = {"numpy", "lmdb", "PIL", "tqdm", "openvino", "torch", "featcache.cli.caches"}
    assert loaded(place, "build", "photos", "--cache", "cache") <= allowed


@pytest.mark.parametrize(("written", "status"), [(["inf"], 2), (["info", "--nope"], 2), (["--help"], 0)])
def test_only_the_verb_asked_for_is_made_and_all_are_known(tmp_path: Path, written: list[str], status: int) -> None:
    """A verb that is not there is told the nearest one; the help shows them all."""
    code = "from featcache.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *written], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    if written == ["inf"]:
        assert "Did you mean 'info'" in done.stderr
    if written == ["--help"]:
        assert all(verb in done.stdout for verb in ("build", "info", "train", "export", "predict", "run"))


def test_each_verb_is_in_the_file_that_the_table_says_and_loads_no_other() -> None:
    """`VERBS` names every verb that there is, in the order of the help; one of them brings its own file only."""
    from featcache.cli.verbs import VERBS, app

    homes = [
        (command.callback.__module__.rpartition(".")[2], command.callback.__name__)
        for command in app.registered_commands
        if command.callback is not None
    ]
    assert sorted(homes) == sorted((file, verb) for file, verbs in VERBS.items() for verb in verbs)
    code = (
        "import sys; from featcache.cli.verbs import VERBS, application_for; application_for(['info'])\n"
        "print([file for file in VERBS if f'featcache.cli.{file}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['caches']"
