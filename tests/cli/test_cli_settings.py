"""Options that are made of the option classes: which there are, what they refuse, how help and completion show them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from memory_cache import blobs
from train_caches import write_cache
from typer.testing import CliRunner

from featcache.cli import app
from featcache.cli.reference import PAGE, REMAKE, reference_page
from featcache.cli.settings import flag_of
from featcache.errors import InputError
from featcache.train.options import HEAD_OPTIONS, DistillationOptions, LinearOptions, TrainOptions

CODE = "import sys; sys.argv[0] = 'featcache'\nfrom featcache.cli import main\nmain()"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache on disk."""
    return write_cache(tmp_path_factory.mktemp("made") / "cache", blobs(spread=2.0))


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as the installed script does."""
    return subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def refused(*arguments: object) -> str:
    """Return the message of the error that a command ends with."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert isinstance(done.exception, InputError), done.output
    return str(done.exception)


@pytest.mark.parametrize("options", [*HEAD_OPTIONS.values(), TrainOptions, DistillationOptions])
def test_every_field_of_the_option_classes_is_an_option_of_train(options: type) -> None:
    """With the field's default and line: nothing of a setting is written down twice."""
    command = typer.main.get_command(app).commands["train"]
    parameters = {one.name: one for one in command.params}
    for field in dataclasses.fields(options):
        parameter = parameters[field.name]
        assert parameter.opts == [flag_of(field.name)]
        assert parameter.help.startswith(field.metadata["help"].rstrip("."))
        assert parameter.rich_help_panel == field.metadata["panel"]
        default = None if field.default is dataclasses.MISSING else field.default
        assert parameter.default == (",".join(map(str, default)) if isinstance(default, tuple) else default)


def test_run_takes_the_penalties_of_a_linear_head() -> None:
    """The same flags as train has, but one value each."""
    command = typer.main.get_command(app).commands["run"]
    names = {one.name for one in command.params}
    penalties = {field.name for field in dataclasses.fields(LinearOptions) if field.metadata["panel"] == "Penalties"}
    assert penalties >= {"l1", "l2", "group_l1", "keep_features"}
    assert penalties <= names
    assert "got several" in refused("run", "photos", "--out", "out", "--l2", "0.1,1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "64"], "--hidden belongs to --kind mlp, got --kind linear"),
        (["--kind", "mlp", "--mixup-copies", "2"], "--mixup-copies belongs to --kind linear, got --kind mlp"),
        (["--metric", "cosine"], "--metric belongs to --kind prototype, got --kind linear"),
        (["--sharpness", "3"], "--sharpness belongs to --kind prototype or knn, got --kind linear"),
        (["--kind", "knn", "--l2", "0.1"], "--l2 belongs to --kind linear, got --kind knn"),
        (["--kind", "knn,prototype", "--mixup", "1"], "--mixup belongs to --kind linear or mlp, got --kind knn,prot"),
        (["--hidden", "512"], "--hidden belongs to --kind mlp"),  # said is said, even where it is the default
        (["--alpha", "0.3"], "--alpha belongs to --teacher CACHE, got no --teacher"),
        (["--temperature", "4"], "--temperature belongs to --teacher"),
        (["--unlabelled", "more"], "--unlabelled belongs to --teacher"),
        (["--mixup-copies", "2"], "mixup_copies needs mixup above 0"),
        (["--unknown-accept", "0.5"], "unknown_accept needs a rule"),
        (["--kind", "forest"], "kind must be one of"),
    ],
    ids=" ".join,
)
def test_setting_that_the_head_would_ignore_is_refused_by_name(cache: Path, arguments: list[str], message: str) -> None:
    """Before anything is trained, with the flag that was given and the kind it belongs to."""
    assert message in refused("train", cache, *arguments)


def test_setting_of_several_kinds_goes_to_those_that_have_it(cache: Path) -> None:
    """A penalty is the linear head's, the number of neighbours the other's, and both are trained."""
    done = CliRunner().invoke(
        app, ["train", str(cache), "--kind", "linear,knn", "--l2", "0.1", "--neighbors", "3", "--json"]
    )
    assert done.exit_code == 0, done.output
    linear, knn = (result["settings"] for result in json.loads(done.stdout)["compared"])
    assert linear == {"l1": 0.0, "l2": 0.1, "group_l1": 0.0}
    assert (knn["kind"], knn["neighbors"]) == ("knn", 3)
    assert "l2" not in knn


def test_help_of_train_stands_in_panels() -> None:
    """A reader finds the group first, then the option; long flags are not cut on a wide terminal."""
    shown = run("train", "--help", COLUMNS="160", TERM="dumb").stdout
    panels = ["Data", "Penalties", "Kind", "Targets", "Fit", "After the fit", "Distillation", "Output"]
    assert sorted(panels, key=lambda panel: shown.index(f"─ {panel} ─")) == panels


def test_version_is_the_packages() -> None:
    """`featcache --version` says it on stdout and ends well."""
    import featcache

    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"featcache {featcache.__version__}\n")


@pytest.mark.parametrize(("words", "expected"), [("featcache tr", "train"), ("featcache train --group", "--group-l1")])
def test_shell_completion_of_bash_offers_verbs_and_options(words: str, expected: str) -> None:
    """What bash asks through the environment is answered, one word a line."""
    done = run(COMP_WORDS=words, COMP_CWORD=str(words.count(" ")), _FEATCACHE_COMPLETE="complete_bash")
    assert done.stdout.split() == [expected], done.stderr


def test_reference_page_is_what_the_commands_say() -> None:
    """The page in the tree is made from the commands; a changed option must be made again."""
    assert PAGE.read_text(encoding="utf-8") == reference_page(), f"the page is stale, make it again: {REMAKE}"


def test_importing_the_command_line_reads_neither_numpy_nor_torch() -> None:
    """`--help` starts as a bare typer application does."""
    code = "import sys, featcache.cli; print([name for name in ('numpy', 'torch', 'timm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
