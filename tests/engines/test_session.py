"""ONNX Runtime is started in one place."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

import featcache
from featcache.engines import session
from featcache.engines.session import open_session
from featcache.errors import FormatError
from featcache.testing.formats import float_classifier, random_images, reference_logits

PACKAGE = Path(featcache.__file__).parent


def test_session_is_made_in_one_module_only() -> None:
    """So that its options are stated once."""
    makers = [
        file.relative_to(PACKAGE).as_posix()
        for file in sorted(PACKAGE.rglob("*.py"))
        if re.search(r"\bInferenceSession\(", file.read_text(encoding="utf-8"))
    ]
    assert makers == ["engines/session.py"]


def test_session_of_path_and_of_bytes_gives_the_same_logits(tmp_path: Path) -> None:
    """Optimised or not, with any number of threads."""
    model, images = float_classifier(), random_images(2)
    onnx.save(model, tmp_path / "model.onnx")
    expected = reference_logits(model, images)
    sessions = [
        open_session(tmp_path / "model.onnx"),
        open_session(str(tmp_path / "model.onnx"), threads=1, save_optimised=tmp_path / "optimised.onnx"),
        open_session(model.SerializeToString(), optimise=False),
        open_session(tmp_path / "optimised.onnx", threads=2),
    ]
    for opened in sessions:
        logits = opened.run(["logits"], {"image": images})[0]
        assert abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("data", [b"", b"not onnx at all"])
def test_session_of_no_onnx_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    """As bytes, as a file, and where there is none."""
    (tmp_path / "model.onnx").write_bytes(data)
    for model in (data, tmp_path / "model.onnx", tmp_path / "nowhere.onnx"):
        with pytest.raises(FormatError, match="the network must be an ONNX file, ONNX Runtime says") as raised:
            open_session(model)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("asked", "threads"), [(None, 3), (1, 1), (2, 2)])
def test_a_session_has_no_more_threads_than_its_container(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, threads: int
) -> None:
    """Stated always: left to itself, ONNX Runtime counts the machine's processors and pins threads to them."""
    monkeypatch.setattr(session, "processor_count", lambda: 3)
    opened = open_session(float_classifier().SerializeToString(), threads=asked)
    assert opened.get_session_options().intra_op_num_threads == threads
