"""Samples: the draw of splits, duplicates and conflicts, and their file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from featcache.datasets.listing import Listing
from featcache.datasets.samples import Samples, load_samples, save_samples
from featcache.datasets.splits import NO_SPLIT, assign_splits, split_draws
from featcache.errors import CorruptError, FormatError


def digests_of(names: list[str]) -> np.ndarray:
    rows = [np.frombuffer(hashlib.sha256(os.fsencode(name)).digest(), dtype=np.uint8) for name in names]
    return np.array(rows, dtype=np.uint8).reshape(len(names), 32)


def listing_of(names: list[str], labels: list[int], *, given_splits: list[int] | None = None) -> Listing:
    n = len(names)
    classes = tuple(f"class{i}" for i in range(max(labels, default=-1) + 1))
    return Listing(
        root="somewhere",
        task="classification",
        classes=classes,
        paths=names,
        stats=np.arange(4 * n, dtype=np.int64).reshape(n, 4),
        labels=np.array(labels, dtype=np.int32),
        targets=None,
        given_splits=np.array(given_splits or [NO_SPLIT] * n, dtype=np.uint8),
        ignored=3,
        failures=(("gone.jpg", "cannot be read"),),
        scanned_ns=12345,
    )


def test_draw_is_the_documented_formula() -> None:
    digest = hashlib.sha256(b"an image").digest()
    expected = int.from_bytes(hashlib.sha256((7).to_bytes(8, "big") + digest).digest()[:8], "big") / 2**64
    assert split_draws(np.frombuffer(digest, dtype=np.uint8)[None], seed=7).tolist() == [expected]


def test_shares_are_about_15_15_70() -> None:
    names = [f"{i}" for i in range(4000)]
    splits = assign_splits(listing_of(names, [0] * 4000), digests_of(names), seed=0)
    shares = np.bincount(splits, minlength=3) / 4000
    assert np.abs(shares - [0.70, 0.15, 0.15]).max() < 0.02


@given(st.integers(2, 60), st.integers(1, 40), st.integers(-5, 5))
def test_adding_images_never_moves_others(n: int, more: int, seed: int) -> None:
    names = [f"{i}" for i in range(n + more)]
    labels = [0] * (n + more)
    small = assign_splits(listing_of(names[:n], labels[:n]), digests_of(names[:n]), seed=seed)
    large = assign_splits(listing_of(names, labels), digests_of(names), seed=seed)
    drawn = split_draws(digests_of(names[:n]), seed=seed)
    if (drawn >= 0.30).any():  # else the class had no train image and its lowest draw was moved there
        assert np.array_equal(small, large[:n])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_every_class_has_a_train_sample(labels: list[int]) -> None:
    names = [f"{i}" for i in range(len(labels))]
    splits = assign_splits(listing_of(names, labels), digests_of(names), seed=1)
    for label in set(labels):
        assert 0 in splits[np.array(labels) == label]


def test_equal_bytes_are_never_drawn_into_two_splits() -> None:
    names = ["same"] * 2 + [f"{i}" for i in range(50)]
    digests = digests_of(names)
    splits = assign_splits(listing_of(names, [0, 1] + [2] * 50), digests, seed=0)
    assert splits[0] == splits[1]


def test_given_splits_stand_and_val_is_carved_from_train() -> None:
    names = [f"{i}" for i in range(200)]
    given_splits = [0] * 150 + [2] * 50
    splits = assign_splits(listing_of(names, [0] * 200, given_splits=given_splits), digests_of(names), seed=0)
    assert (splits[150:] == 2).all()
    assert 5 < (splits[:150] == 1).sum() < 45
    assert not (splits[:150] == 2).any()
    with_val = [0] * 100 + [1] * 50 + [2] * 50
    splits = assign_splits(listing_of(names, [0] * 200, given_splits=with_val), digests_of(names), seed=0)
    assert splits.tolist() == with_val


def samples_of(names: list[str], labels: list[int], contents: list[str] | None = None) -> Samples:
    listing = listing_of(names, labels)
    digests = digests_of(contents or names)
    return Samples("set", listing, digests, assign_splits(listing, digests, seed=0), {1: "truncated"}, 0)


def test_conflicts_and_leaks() -> None:
    samples = samples_of(["a", "b", "c", "d"], [0, 1, 0, 0], ["x", "x", "y", "y"])
    assert samples.label_conflicts() == [["a", "b"]]
    assert samples.split_leaks() == []
    leaking = dataclasses.replace(samples, splits=np.array([0, 0, 0, 2], dtype=np.uint8))
    assert leaking.split_leaks() == [["c", "d"]]


def test_file_round_trip_with_odd_names(tmp_path: Path) -> None:
    samples = samples_of(["a", os.fsdecode(b"caf\xe9"), "ü\n"], [0, 1, -1])
    save_samples(samples, tmp_path / "s")
    back = load_samples(tmp_path / "s")
    assert back.paths == samples.paths
    assert back.failures == samples.failures
    assert back.listing.failures == samples.listing.failures
    for name in ("digests", "splits", "labels"):
        assert np.array_equal(getattr(back, name), getattr(samples, name))
    assert np.array_equal(back.listing.stats, samples.listing.stats)


def test_damaged_or_newer_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_samples(samples_of(["a", "b"], [0, 1]), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptError, match="sample list"):
        load_samples(path)
    path.write_bytes(data.replace(b'\\"version\\": 2', b'\\"version\\": 9'))
    with pytest.raises(CorruptError, match="checksum"):
        load_samples(path)


def test_a_newer_file_is_refused_by_name(tmp_path: Path) -> None:
    """A file that is intact, by the rule for checksums that every version keeps, and says version 9."""
    path = tmp_path / "s"
    save_samples(samples_of(["a", "b"], [0, 1]), path)
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()["featcache"]
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
    assert '"version": 2' in header
    header = header.replace('"version": 2', '"version": 9')
    checksum = crc32c(header.encode())
    for name, array in sorted(arrays.items()):
        shape = ",".join(str(side) for side in array.shape)
        checksum = crc32c(array.tobytes(), crc32c(f"{name} {array.dtype} {shape}".encode(), checksum))
    path.write_bytes(save(arrays, metadata={"featcache": header, "crc32c": str(checksum)}))
    with pytest.raises(FormatError, match="version 2, got 9"):
        load_samples(path)


def test_every_flipped_bit_of_the_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_samples(samples_of(["a", "b", "c"], [0, 1, -1]), path)
    data = path.read_bytes()
    random = np.random.default_rng(1)
    for bit in random.choice(8 * len(data), size=300, replace=False).tolist():
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises((CorruptError, FormatError)):
            load_samples(path)
