"""`featcache backbones`: the table that people read, and the object that programs read."""

from __future__ import annotations

from pathlib import Path

from model_hub import fill_cache
from typer.testing import CliRunner

from featcache.backbone.probes import read_probes
from featcache.cli import app
from featcache.system.json import parse_json


def test_table_has_a_line_for_each_with_its_figures_and_says_what_auto_takes(
    hub_cache: Path, mobilenetv2: bytes
) -> None:
    fill_cache(hub_cache, "timm/mobilenetv2_100.ra_in1k", {"model.safetensors": mobilenetv2})
    done = CliRunner().invoke(app, ["backbones"])
    assert done.exit_code == 0
    head, best, nano = done.stdout.splitlines()
    sets = list(read_probes()[0].accuracy)
    assert head.split() == ["name", "input", "parameters", "features", "bytes", "images/s", *sets, "where"]
    assert best.split()[:6] == ["mobilenetv2_100.ra_in1k", "224x224", "2,223,872", "1280", f"{len(mobilenetv2):,}", "-"]
    figures = {probe.name: f"{100 * probe.rank:.1f}" for probe in read_probes()}
    assert best.split()[6:8] == [figures["mobilenetv2_100"], "%*"]
    assert nano.split()[6:8] == [figures["featcache_nano"], "%"]
    assert best.endswith("hub cache")
    assert nano.endswith("embedded")
    assert "* measured with other weights of the same network" in done.stderr
    assert f"--backbone auto takes mobilenetv2_100.ra_in1k; the hub's local cache is {hub_cache}" in done.stderr


def test_json_is_one_object_with_what_auto_takes_and_the_notes(hub_cache: Path) -> None:
    fill_cache(hub_cache, "timm/mobilenetv2_100.ra_in1k", {"model.safetensors": b"no safetensors"})
    done = CliRunner().invoke(app, ["backbones", "--json"])
    assert done.exit_code == 0
    value = parse_json(done.stdout)
    assert set(value) == {"backbones", "auto", "hub_cache", "notes"}
    assert (value["auto"], value["hub_cache"], len(value["notes"])) == ("featcache_nano", str(hub_cache), 1)
    (nano,) = value["backbones"]
    assert (nano["name"], nano["input_size"], nano["images_per_second"]) == ("featcache_nano", [128, 128], None)


def test_path_that_is_not_there_is_one_line(hub_cache: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["backbones", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
