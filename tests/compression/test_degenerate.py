"""Images that say nothing (all equal, all black, copies of two) end no compression: any rank, any constant channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_photo
from PIL import Image

from featcache.compression import prune, quantize
from featcache.compression.compensation import Moments, solve_all
from featcache.compression.factor import cholesky
from featcache.compression.rounding import LIMIT, MomentsSum, channel_scales, round_jointly
from featcache.compression.selection import removal_order
from featcache.errors import InputError
from featcache.extract.build import build_cache
from featcache.model.merging import merge
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions


def _inputs(kind: str) -> torch.Tensor:
    """Return (12, 400): inputs of a layer for images of this kind."""
    normal = torch.randn(12, 400, generator=torch.Generator().manual_seed(0))
    if kind == "black":
        return torch.zeros(12, 400)
    if kind == "equal":
        return (normal[:, :1] * 1000).expand(12, 400).contiguous()
    if kind == "two":
        return (1000 * normal[:, :2]).repeat(1, 200)
    if kind == "a constant channel":
        normal[3] = 7000.0
        return normal
    normal[::2] *= 1e-6  # scales far apart
    normal[1::2] *= 1e6
    return normal


@pytest.mark.parametrize("kind", ["black", "equal", "two", "a constant channel", "scales far apart"])
@pytest.mark.parametrize("wide", [False, True])
def test_rounding_and_solving_take_inputs_of_any_rank(kind: str, wide: bool) -> None:
    """Rounded weights are on the grid; solved ones are finite and no worse than the old ones."""
    inputs = _inputs(kind).repeat(100, 1) if wide else _inputs(kind)  # above 1,024 inputs in float32
    d = len(inputs)
    weight = torch.randn(5, d, generator=torch.Generator().manual_seed(1))
    moments = MomentsSum()
    for batch in inputs.split(100, dim=1):
        moments.add(batch[None])
    scales = channel_scales(weight)
    steps = round_jointly(weight, scales, moments.result()) / scales[:, None]
    assert torch.isfinite(steps).all() and steps.abs().max() <= LIMIT + 1e-3
    x = inputs.double()
    gram, cross = x @ x.T / x.shape[1], x @ (weight.double() @ x).T / x.shape[1]
    power = (weight.double() @ x).square().mean(dim=1)
    none = torch.zeros(1, dtype=torch.float64)
    full = Moments(gram, cross, power, none.expand(d), none.expand(5))
    solved = solve_all(weight, full)
    assert torch.isfinite(solved).all()
    if not wide:
        removed = removal_order({"layer": weight}, {"layer": full}, width=d, unit=1, kept=[d // 2])
        assert torch.isfinite(removed.weights[d // 2]["layer"]).all()


def test_factor_of_what_is_definite_is_torchs() -> None:
    """Bit for bit: nothing is added where nothing must be."""
    x = torch.randn(3, 6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = x @ x.transpose(1, 2)
    assert torch.equal(cholesky(matrix), torch.linalg.cholesky(matrix))


def test_factor_adds_to_those_that_need_it_alone() -> None:
    """One matrix of a batch is negative by rounding, another by more; the third stays what it is."""
    matrix = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    matrix[0, 3, 3], matrix[1, 3, 3] = -1e-15, -1e-6
    factor = cholesky(matrix)
    assert torch.equal(factor[2], torch.eye(4, dtype=torch.float64))
    assert torch.allclose(factor @ factor.transpose(1, 2), matrix, atol=2e-5)
    assert torch.isfinite(cholesky(torch.zeros(2, 5, 5))).all()


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="must be finite"):
        cholesky(torch.full((2, 2), float("nan")))


def _black(path: Path, number: int) -> None:
    """Write a black picture with bytes of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes() + bytes([number]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backbone"),
    [("black", "test_efficientnet"), pytest.param("copies", "test_resnet", marks=pytest.mark.long)],
)
def test_every_compression_ends(kind: str, backbone: str, tmp_path: Path) -> None:
    """From image files to the smaller model, whatever the photos are."""
    for number in range(12):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.png"
        if kind == "black":
            _black(path, number)
        else:
            write_photo(path, seed=number % 2)
    build_cache(tmp_path / "photos", tmp_path / "cache", backbone=backbone, weights="random:0", engine="torch")
    head = train_head(tmp_path / "cache", head=LinearOptions(l2=0.1)).head
    merge(head, tmp_path / "cache", out=tmp_path / "model")
    quantize(tmp_path / "model", cache=tmp_path / "cache", out=tmp_path / "int8")
    for method, amount in (("channel", 0.2), ("magnitude", 0.5)):
        prune(tmp_path / "model", cache=tmp_path / "cache", out=tmp_path / method, method=method, amount=amount)
    quantize(tmp_path / "channel", cache=tmp_path / "cache", out=tmp_path / "small")
