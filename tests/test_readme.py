"""The README, in both languages: its commands and its Python run, and every command stands in it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from text_encoders import SENTENCES, write_encoder

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
README_ZH = (ROOT / "README.zh.md").read_text(encoding="utf-8")
MAIN = [sys.executable, "-W", "ignore", "-c", "from featcache.cli import main; main()"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def console_lines(page: str) -> list[list[str]]:
    """Return the words of each line that a reader may type, without its comment."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line[2:], comments=True) for line in lines]


@pytest.mark.slow
def test_commands_run_word_for_word(photos: Path, tmp_path: Path) -> None:
    assert photos.parent == tmp_path  # the README's photos/
    assert console_lines(README_ZH) == console_lines(README), "one run is the test of both pages"
    listed = [arguments for program, *arguments in console_lines(README) if program == "featcache"]
    assert [arguments[0] for arguments in listed] == [
        "build", "train", "merge", "prune", "quantize", "export", "predict", "evaluate", "run", "predict",
    ]  # fmt: skip
    rows = [(f"{text} {end}", "card" if "card" in text else "time") for text in SENTENCES for end in ("now", "today")]
    table = "".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows])
    (tmp_path / "questions.csv").write_text(table, encoding="utf-8")
    write_encoder(tmp_path / "all-MiniLM-L6-v2")
    for arguments in listed:
        done = subprocess.run([*MAIN, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stderr[-1500:])


@pytest.mark.slow
def test_python_runs_word_for_word(photos: Path, tmp_path: Path) -> None:
    (block,) = blocks(README, "python")
    assert blocks(README_ZH, "python") == [block], "one run is the test of both pages"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert len(done.stdout.splitlines()) == 2


def test_every_command_stands_in_the_readme() -> None:
    from featcache.cli import app

    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    missing = [name for name in names if f"featcache {name}" not in README]
    assert not missing
    assert len(names) >= 11


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts need bash")
@pytest.mark.parametrize("script", ["setup", "test", "demo"])
def test_scripts_are_sound_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], check=True)
