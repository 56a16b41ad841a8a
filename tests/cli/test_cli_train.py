"""`featcache train`: several heads in one table, the same figures as in Python, errors of one line, no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs, digests_of, make_samples
from train_caches import write_cache
from typer.testing import CliRunner

from featcache.cli import app, main
from featcache.errors import InputError
from featcache.heads import load_head
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions, TrainOptions


def test_several_kinds_and_outputs_are_compared_in_one_table(tmp_path):
    plain = blobs()
    columns = {"features": plain.arrays["features"], "stage1": plain.arrays["features"][:, :3]}
    path = write_cache(tmp_path / "cache", MemoryCache(columns, plain.samples()))
    command = [
        "train",
        str(path),
        "--kind",
        "linear,prototype",
        "--outputs",
        "features",
        "--outputs",
        "features,stage1",
    ]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "head")])
    assert done.exit_code == 0, done.output
    table = [line for line in done.stderr.splitlines() if str(path) in line]
    assert [line.split()[1:4] for line in table] == [
        ["linear", "features", "16"],
        ["linear", "features,stage1", "19"],
        ["prototype", "features", "16"],
        ["prototype", "features,stage1", "19"],
    ]
    best = max(range(4), key=lambda i: float(table[i].split("*")[0].split()[-1]) if "*" in table[i] else -1)
    assert load_head(tmp_path / "head").kind == table[best].split()[1]


def test_several_penalties_are_compared_and_the_best_is_saved(tmp_path):
    path = write_cache(tmp_path / "cache", blobs(spread=2.0))
    command = ["train", str(path), "--l2", "0.01,10", "--out", str(tmp_path / "head"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    table = [line for line in done.stderr.splitlines() if str(path) in line]
    assert [line.split()[2] for line in table] == ["l2=0.01", "l2=10.0"]
    best = 0 if "*" in table[0] else 1
    assert json.loads(done.stdout)["l2"] == (0.01, 10.0)[best]
    refused = CliRunner().invoke(app, ["train", str(path), "--l2", "0.01,-1"])
    assert refused.exit_code == 1


def test_keep_features_is_the_same_in_the_command_and_in_python(tmp_path):
    path = write_cache(tmp_path / "cache", blobs(spread=2.0))
    done = CliRunner().invoke(app, ["train", str(path), "--keep-features", "0.5", "--l2", "0.01", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    result = train_head(path, head=LinearOptions(keep_features=0.5, l2=0.01))
    assert told["features_used"] == result.features_used <= 8
    assert told["objective"] == result.objective
    assert told["details"]["kept"] == result.details["kept"]


def test_training_from_the_command_line_imports_no_torch_and_no_scikit_learn(tmp_path):
    path = write_cache(tmp_path / "cache", blobs())
    folded = write_cache(tmp_path / "folded", blobs(val=False))
    code = (
        "import sys; from featcache.cli import app; cache, folded, out = sys.argv[1:];"
        "runs = [[cache], [cache, '--l1', '0.01'], [cache, '--l1', 'auto'], [cache, '--group-l1', '0.01'],"
        " [cache, '--group-l1', 'auto', '--standard-error-rule'], [folded, '--l2', 'auto', '--folds', '3'],"
        " [folded, '--l1', 'auto'], [cache, '--keep-features', '0.5'], [cache, '--memory-gb', '1e-6', '--l2', '1'],"
        " [cache, '--calibrate', '--unknown', 'auto', '--mixup', '0.2', '--out', out]];"
        "[app(['train', *run], standalone_mode=False) for run in runs];"
        "bad = {'torch', 'sklearn', 'timm', 'scipy'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    arguments = [str(path), str(folded), str(tmp_path / "head")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    assert load_head(tmp_path / "head").unknown is not None


def with_bad_row(value: float) -> MemoryCache:
    cache = blobs()
    cache.arrays["features"][cache.select(split="train").rows[3], 2] = value
    return cache


BAD = {
    "nan": (lambda: with_bad_row(np.nan), [], "features must be finite"),
    "infinity": (lambda: with_bad_row(np.inf), [], "features must be finite"),
    "streamed nan": (lambda: with_bad_row(np.nan), ["--memory-gb", "1e-6"], "features must be finite"),
    "no train row": (lambda: blobs(classes=("a", "b", "c", "d", "lonely")), [], "got none for ['lonely']"),
    "one class": (lambda: blobs(k=1), [], "at least two classes"),
    "negative l1": (blobs, ["--l1", "-1"], "l1 must be"),
    "negative l2": (blobs, ["--l2", "-0.5"], "l2 must be"),
    "negative group": (blobs, ["--group-l1", "-0.5"], "group_l1 must be"),
    "seed": (blobs, ["--seed", "-1", "--mixup", "0.2"], "seed must be"),
    "diverging": (blobs, ["--kind", "mlp", "--learning-rate", "1e30"], "must stay finite"),
    "scales": (blobs, ["--block-scales", "wide"], "--block-scales must be 'auto' or numbers"),
}


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_a_status(case, as_json, tmp_path, monkeypatch, capsys):
    make, options, message = BAD[case]
    path = write_cache(tmp_path / "cache", make())
    refused_in_one_line(["train", str(path), *options, *as_json], message, monkeypatch, capsys)


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_a_teacher_that_does_not_fit_is_one_line_and_a_status(as_json, tmp_path, monkeypatch, capsys):
    student = write_cache(tmp_path / "student", blobs())
    names = ("class0", "class1", "class2", "other")
    strange = write_cache(tmp_path / "strange", blobs(classes=names), model="teacher.model")
    command = ["train", str(student), *as_json, "--teacher"]
    refused_in_one_line([*command, str(strange)], "it lacks ['class3']", monkeypatch, capsys)
    others = write_cache(tmp_path / "others", blobs(digests=digests_of(240, salt=1)), model="teacher.model")
    refused_in_one_line([*command, str(others)], "144 of 144 are missing", monkeypatch, capsys)


def refused_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["featcache", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("featcache: ")
    assert said.err.count("\n") == 1
    assert message in said.err


def test_block_scales_are_the_same_in_the_command_and_in_python(tmp_path):
    plain = blobs(spread=2.0)
    columns = {"features": plain.arrays["features"], "stage1": plain.arrays["features"][:, :3]}
    path = write_cache(tmp_path / "cache", MemoryCache(columns, plain.samples()))
    command = ["train", str(path), "--outputs", "features,stage1", "--l2", "0.1", "--json", "--block-scales"]
    for given, scales in (("auto", "auto"), ("1,0.5", [1.0, 0.5])):
        done = CliRunner().invoke(app, [*command, given])
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        result = train_head(
            path, head=LinearOptions(l2=0.1, block_scales=scales), options=TrainOptions(outputs=["features", "stage1"])
        )
        assert told["objective"] == result.objective


def test_json_of_several_fits_holds_each(tmp_path):
    path = write_cache(tmp_path / "cache", blobs(spread=2.0))
    done = CliRunner().invoke(app, ["train", str(path), "--l2", "0.01,10", "--json"])
    assert [one["l2"] for one in json.loads(done.stdout)["compared"]] == [0.01, 10.0]
    alone = CliRunner().invoke(app, ["train", str(path), "--l2", "0.01", "--json"])
    assert "compared" not in json.loads(alone.stdout)


def test_without_val_several_fits_are_told_but_none_is_kept(tmp_path):
    path = write_cache(tmp_path / "cache", blobs(val=False))
    command = ["train", str(path), "--l2", "0.01,10"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0
    assert len(told.stderr.splitlines()) == 3
    refused = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "head")])
    assert isinstance(refused.exception, InputError)
    assert "no val split" in str(refused.exception)
    assert not (tmp_path / "head").exists()


def test_a_regression_head_is_told_with_its_score(tmp_path):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(100, 4)).astype(np.float32)
    splits = (["train"] * 3 + ["val", "test"]) * 20
    samples = make_samples(
        np.zeros(100, dtype=int), splits, targets=features[:, :1] * 2, task="regression", classes=("size",)
    )
    path = write_cache(tmp_path / "cache", MemoryCache({"features": features}, samples))
    done = CliRunner().invoke(app, ["train", str(path)])
    assert done.exit_code == 0, done.output
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert told["score"] == "r2"
    assert float(told["val_score"]) > 0.99
