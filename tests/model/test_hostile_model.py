"""A MODEL from a stranger: whatever its JSON says, nothing is unpickled, fetched or executed."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from export_models import saved_model

from featcache.errors import CorruptError
from featcache.model.directory import load_model


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "model", golden=False)


def rewrite(model: Path, **architecture: Any) -> None:
    """Change the architecture that ``model.json`` states."""
    document = json.loads((model / "model.json").read_text())
    document["architecture"] |= architecture
    (model / "model.json").write_text(json.dumps(document))


def test_pickled_checkpoint_named_in_the_model_is_not_opened(model: Path, tmp_path: Path) -> None:
    """timm would unpickle what `checkpoint_path` names."""
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    rewrite(model, model_kwargs={"checkpoint_path": str(tmp_path / "evil.pth")})
    with pytest.raises(CorruptError, match="checkpoint_path"):
        load_model(model)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "local-dir:{}", "hf_hub:evil/model"])
def test_network_of_a_hub_or_folder_is_not_fetched(model: Path, tmp_path: Path, name: str) -> None:
    """A model is built of timm's own code by name; a saved one never names another place."""
    rewrite(model, timm=name.format(tmp_path))
    with pytest.raises(CorruptError, match="a name of timm's"):
        load_model(model)


@pytest.mark.parametrize("kwargs", [{"pretrained": True}, {"features_only": True}, {"in_chans": 1}, ["a"], None])
def test_arguments_that_are_not_the_networks_are_refused(model: Path, kwargs: object) -> None:
    """As `load_backbone` refuses them from the user."""
    rewrite(model, model_kwargs=kwargs)
    with pytest.raises(CorruptError) as caught:
        load_model(model)
    assert "\n" not in str(caught.value)
