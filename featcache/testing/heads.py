"""The contract of a kind of head, as a class of tests: subclass it in a test file and say how a head is made.

    class TestMyHead(HeadContract):
        def make_head(self, **common):
            return MyHead(weight=..., **common)

`common` are the fields that every kind has. Needs pytest; the module form needs torch.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from featcache.errors import InputError
from featcache.heads.base import Head
from featcache.heads.calibration import Calibration
from featcache.heads.io import load_head, save_head
from featcache.heads.kinds import head_class
from featcache.heads.unknown import UnknownRule


class HeadContract(ABC):
    """What every kind of head promises, whatever its state is."""

    @abstractmethod
    def make_head(self, **common: Any) -> Head:
        """Return a head of at least two features; each call with equal arguments gives an equal one.

        `common`: keyword arguments of `Head`, among them `classes`, three names.
        """

    @pytest.fixture
    def head(self) -> Head:
        """A head with every common field set to something that is not its default."""
        return self.make_head(
            classes=("cat", "dog", "ütf ☃"),
            columns=("features", "layer3"),
            fingerprint="a" * 64,
            settings={"seed": 3},
            calibration=Calibration(1.5, 0.2, 0.1, 30),
            unknown=UnknownRule("energy", 0.25, 0.95, 40, 0.8, ("dog",)),
        )

    @pytest.fixture
    def features(self, head: Head) -> npt.NDArray[np.float32]:
        """Eleven rows as a cache would hold them."""
        return np.random.default_rng(1).normal(size=(11, head.num_features)).astype(np.float32)

    def test_kind_is_registered_as_this_class(self, head: Head) -> None:
        """A directory that names the kind is loaded as this class."""
        assert head_class(head.kind) is type(head)

    def test_logits_of_raw_features_are_float32_one_row_each(self, head: Head, features: npt.NDArray[Any]) -> None:
        """Shape (n, n_classes), finite, float32; the features stay as they are, and float16 ones are taken too."""
        before = features.copy()
        logits = head.predict_logits(features)
        assert logits.shape == (11, 3) and logits.dtype == np.float32
        assert np.isfinite(logits).all()
        assert np.array_equal(features, before)
        assert head.predict_logits(features.astype(np.float16)).dtype == np.float32
        assert head.predict_logits(features[:0]).shape == (0, 3)

    def test_logits_of_a_row_do_not_depend_on_the_others(self, head: Head, features: npt.NDArray[Any]) -> None:
        """A row alone, or in another order, gets the logits it gets among the others, up to rounding."""
        logits = head.predict_logits(features)
        assert np.allclose(head.predict_logits(features[4:5]), logits[4:5], rtol=1e-4, atol=1e-5)
        assert np.allclose(head.predict_logits(features[::-1]), logits[::-1], rtol=1e-4, atol=1e-5)

    def test_rows_of_another_width_are_refused_with_both_shapes(self, head: Head) -> None:
        """Before anything is multiplied, the error says what width it must be and which came."""
        width = head.num_features
        with pytest.raises(InputError, match=rf"\(n, {width}\).*\(4, {width - 1}\)"):
            head.predict_logits(np.zeros((4, width - 1), dtype=np.float32))

    def test_probabilities_sum_to_one_and_follow_the_logits(self, head: Head, features: npt.NDArray[Any]) -> None:
        """The class predicted is the one of the largest probability."""
        probabilities = head.predict_proba(features)
        assert probabilities.dtype == np.float32
        assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert np.array_equal(probabilities.argmax(axis=1), head.predict(features))

    def test_temperature_divides_the_logits_and_nothing_else(self, head: Head, features: npt.NDArray[Any]) -> None:
        """Every common field stays; the head itself stays as it was."""
        before = head.predict_logits(features)
        cooled = head.with_temperature(2.5)
        assert type(cooled) is type(head)
        assert np.allclose(cooled.predict_logits(features) * 2.5, before, atol=1e-4)
        assert np.array_equal(head.predict_logits(features), before)
        assert _common(cooled) == _common(head)

    def test_head_is_frozen(self, head: Head) -> None:
        """A head is a value: its fields cannot be set."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            head.classes = ("a", "b", "c")  # type: ignore[misc]

    def test_classes_that_are_not_distinct_are_refused(self) -> None:
        """The constructor checks the common fields (`check_common`)."""
        with pytest.raises(InputError, match="distinct"):
            self.make_head(classes=("cat", "cat", "dog"))

    def test_arrays_and_json_options_are_the_whole_state(self, head: Head, features: npt.NDArray[Any]) -> None:
        """From copies of both, the options through JSON, comes a head of the same logits, bit for bit."""
        arrays = {name: np.array(array) for name, array in head.arrays().items()}
        assert all(array.dtype.kind in "biuf" for array in arrays.values())
        options = json.loads(json.dumps(head.options(), allow_nan=False))
        again = type(head).from_state(arrays, options, _common(head))
        assert np.array_equal(again.predict_logits(features), head.predict_logits(features))
        assert again.options() == head.options()

    def test_saved_head_comes_back_with_every_field_and_the_same_logits(
        self, head: Head, features: npt.NDArray[Any], tmp_path: Path
    ) -> None:
        """The directory form loses nothing."""
        loaded = load_head(save_head(head, tmp_path / "head"))
        assert type(loaded) is type(head)
        assert _common(loaded) == _common(head)
        assert np.array_equal(loaded.predict_logits(features), head.predict_logits(features))

    def test_equal_heads_are_equal_bytes(self, tmp_path: Path) -> None:
        """Made twice and saved twice, every file is the same."""
        classes = ("cat", "dog", "owl")
        first, second = (save_head(self.make_head(classes=classes), tmp_path / name) for name in ("a", "b"))
        assert {f.name: f.read_bytes() for f in first.iterdir()} == {f.name: f.read_bytes() for f in second.iterdir()}

    def test_module_gives_the_same_logits_or_says_that_there_is_none(
        self, head: Head, features: npt.NDArray[Any]
    ) -> None:
        """A kind that cannot be merged and exported refuses with its name; any other agrees to 1e-5, in eval mode."""
        torch = pytest.importorskip("torch")
        try:
            module = head.to_module()
        except InputError as error:
            assert repr(head.kind) in str(error)
            return
        assert not module.training
        with torch.inference_mode():
            logits = module(torch.from_numpy(features)).numpy()
        assert np.abs(logits - head.predict_logits(features)).max() < 1e-5


def _common(head: Head) -> dict[str, Any]:
    """Return the fields that every kind has, by name."""
    return {field.name: getattr(head, field.name) for field in dataclasses.fields(Head)}
