from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_models import merged, write_photos
from torch import Tensor, nn
from typer.testing import CliRunner

from featcache.cache import open_cache
from featcache.cli.verbs import app
from featcache.compression import prune
from featcache.compression.bounds import floor_share
from featcache.compression.channels import features_of, training_images
from featcache.compression.magnitude import PATTERNS, solvable_layers, zero_weights, zeros_by_size
from featcache.compression.measurement import compressed_bytes, zero_share
from featcache.compression.moments import Moments
from featcache.compression.refitting import Source, open_source
from featcache.compression.sparse_solver import keep_largest, keep_two_of_four, solve_sparse, solve_support
from featcache.errors import InputError
from featcache.model.directory import load_model


def made(folder: Path, backbone: str) -> Path:
    """Return the folder with photos, a cache and a model of `backbone`."""
    return merged(write_photos(folder), folder, backbone)


@pytest.fixture(scope="module", autouse=True)
def _short_timing() -> Iterator[None]:
    """Latency is measured elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featcache.compression.measurement._TIMED_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("magnitude"), "test_efficientnet")


@pytest.fixture(scope="module")
def source(place: Path) -> Iterator[Source]:
    with open_cache(place / "cache") as cache:
        yield open_source(place / "model", cache)


def layers_of(source: Source, network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the layers that can have zeros."""
    size = source.model.preprocessing
    return {
        name: layer.weight.detach()
        for name, layer in solvable_layers(network, network, torch.zeros(1, 3, size.height, size.width)).items()
    }


def test_zeros_are_spread_by_size_within_each_layer() -> None:
    weights = {
        "first": torch.tensor([[1.0, 10.0, 2.0, 20.0]]),
        "second": torch.tensor([[0.01], [0.1], [0.02], [0.2]]),  # a small layer is not all unimportant
        "steep": torch.tensor([[1.0, 1000.0]]),
    }
    assert zeros_by_size(weights, 5) == {"first": 2, "second": 2, "steep": 1}
    assert zeros_by_size(weights, 7) == {"first": 3, "second": 3, "steep": 1}  # the largest weight of a layer stays


def test_the_largest_stay() -> None:
    scores = torch.tensor([[1.0, 5.0], [3.0, 0.0]])
    assert keep_largest(scores, 2).tolist() == [[False, True], [True, False]]
    assert not keep_largest(scores, 0).any()


def test_two_of_four_inputs_stay_at_each_place_of_the_kernel() -> None:
    shape = torch.Size((5, 8, 3, 3))
    scores = torch.rand(5, 72, generator=torch.Generator().manual_seed(0))
    kept = keep_two_of_four(scores, shape).view(5, 2, 4, 9)
    assert (kept.sum(dim=2) == 2).all()
    grouped = scores.view(5, 2, 4, 9)
    least_kept = grouped.masked_fill(~kept, 2.0).amin(dim=2)
    assert (least_kept >= grouped.masked_fill(kept, -1.0).amax(dim=2)).all()
    equal = keep_two_of_four(torch.ones(1, 4), torch.Size((1, 4)))
    assert int(equal.sum()) == 2


def layer_data(seed: int = 0) -> tuple[Tensor, Tensor, Moments]:
    """Return correlated inputs (n, 24), a weight (10, 24), and the moments of inputs and outputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=generator) * torch.logspace(0, -1.5, 24)[:, None]
    inputs = torch.randn(500, 24, generator=generator) @ mixing
    weight = torch.randn(10, 24, generator=generator)
    return inputs, weight, Moments.of(inputs, inputs @ weight.T, centred=False)


def test_kept_weights_are_the_least_squares_solution() -> None:
    inputs, weight, moments = layer_data()
    kept = torch.rand(10, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    solved = solve_support(weight, moments, kept, ridge=0.0)
    assert not solved[~kept].any()
    for row in range(10):
        exact = torch.linalg.lstsq(inputs[:, kept[row]], inputs @ weight[row]).solution
        torch.testing.assert_close(solved[row, kept[row]], exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_chosen_support_is_better_than_that_of_the_largest_weights(seed: int) -> None:
    _, weight, moments = layer_data(seed)
    largest = keep_largest(weight.square(), 96)
    solved = solve_sparse(weight, moments, lambda scores: keep_largest(scores, 96))
    assert int((solved != 0).sum()) == 96
    left, by_size = moments.error(solved), moments.error(solve_support(weight, moments, largest))
    assert left < 0.7 * by_size < 0.7 * moments.error(weight * largest)


def test_dead_inputs_and_outputs_do_no_harm() -> None:
    inputs = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    inputs[:, :4] = 0
    moments = Moments.of(inputs, torch.zeros(50, 3), centred=True)
    solved = solve_sparse(torch.randn(3, 8), moments, lambda scores: keep_largest(scores, 12))
    assert torch.isfinite(solved).all()
    dead = Moments.of(torch.zeros(50, 8), torch.zeros(50, 3), centred=True)
    assert torch.isfinite(solve_sparse(torch.randn(3, 8), dead, lambda scores: keep_largest(scores, 12))).all()


def test_the_share_asked_for_is_zero_and_depthwise_layers_stay_whole(source: Source) -> None:
    original = source.model.backbone.network
    before = {name: module for name, module in original.named_modules() if isinstance(module, nn.Conv2d)}
    network = zero_weights(source, amount=0.6, pattern="global").network
    assert zero_share(network) == pytest.approx(0.6, abs=1e-4)
    depthwise = [name for name, layer in before.items() if layer.groups > 1]
    assert depthwise
    for name in depthwise:
        assert torch.equal(network.get_submodule(name).weight, before[name].weight)
    assert zero_share(original) == 0  # the model that came in is as it was


def test_each_layer_gets_the_same_share(source: Source) -> None:
    network = zero_weights(source, amount=0.5, pattern="layer").network
    shares = [float((weight == 0).float().mean()) for weight in layers_of(source, network).values()]
    assert max(shares) - min(shares) < 0.01
    assert zero_share(network) == pytest.approx(0.5, abs=1e-3)


def test_two_of_four_are_zero_wherever_inputs_come_in_fours(source: Source) -> None:
    sparse = zero_weights(source, amount=0.5, pattern="2:4")
    whole = 0
    for weight in layers_of(source, sparse.network).values():
        if weight.shape[1] % 4:
            whole += 1
            assert (weight != 0).all()
        else:
            groups = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
            zeros = (groups.view(len(weight), -1, 4, groups.shape[2]) == 0).sum(dim=2)
            assert (zeros >= 2).all()
    assert whole
    assert sparse.notes == (f"layers that stay whole, as their inputs are no multiple of four: {whole}",)


def features_error(source: Source, network: nn.Module) -> float:
    """Return the share of the power of the features of training images that `network` misses."""
    model = source.model
    images = training_images(source, 8)
    with torch.inference_mode():
        wanted, got = (features_of(model, one)(images) for one in (model.backbone.network, network))
    return float((wanted - got).square().mean() / wanted.var())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_features_come_nearer_to_the_whole_networks(
    source: Source, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = zero_weights(source, amount=0.5, pattern=pattern).network  # type: ignore[arg-type]
    monkeypatch.setattr(
        "featcache.compression.magnitude.solve_sparse", lambda weight, moments, choose: weight * choose(weight.square())
    )
    as_they_were = zero_weights(source, amount=0.5, pattern=pattern).network  # type: ignore[arg-type]
    assert features_error(source, solved) < 0.8 * features_error(source, as_they_were)


def test_it_is_the_same_every_time(source: Source) -> None:
    first, second = (zero_weights(source, amount=0.5, pattern="global").network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_that_are_no_single_product_are_left_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.grouped = nn.Conv2d(4, 4, 1, groups=2)

        def forward(self, values: Tensor) -> Tensor:
            mixed: Tensor = self.grouped(self.twice(self.twice(self.once(values)))[:, :, None, None])
            return mixed

    network = Twice()
    assert list(solvable_layers(network, network, torch.zeros(1, 4))) == ["once"]


def test_zeros_claim_only_what_they_save(place: Path, tmp_path: Path) -> None:
    result = prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="magnitude", amount=0.7)
    model = load_model(tmp_path / "p")
    assert result.sparsity == pytest.approx(zero_share(model))
    assert (result.macs, result.parameters) == (result.macs_before, load_model(place / "model").parameter_count())
    assert result.bytes_after == pytest.approx(result.bytes_before, rel=0.01)
    assert result.compressed_bytes_after < 0.6 * result.compressed_bytes_before < result.bytes_before
    (note,) = (note for note in result.notes if note.startswith("zeros save no byte"))
    assert f"{result.compressed_bytes_after:,}" in note
    assert model.lineage[-1]["pattern"] == "global"


def test_the_command_hands_on_what_was_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def take(model: Path, **settings: object) -> None:
        given.update(settings)
        raise InputError("seen")

    monkeypatch.setattr("featcache.compression.prune", take)
    words = ["prune", "model", "--cache", "cache", "--out", "out", "--method", "magnitude", "--pattern", "2:4"]
    CliRunner().invoke(app, words)
    assert (given["method"], given["pattern"], given["amount"]) == ("magnitude", "2:4", None)


def test_transformers_have_linear_layers(tmp_path: Path) -> None:
    place = made(tmp_path, "test_vit")
    with open_cache(place / "cache") as cache:
        network = zero_weights(open_source(place / "model", cache), amount=0.5, pattern="layer").network
    assert zero_share(network) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magnitude", "pattern": "1:4", "amount": 0.5}, "--pattern must be one of global, layer, 2:4"),
        ({"method": "magnitude", "pattern": "2:4", "amount": 0.3}, "--amount must be 0.5 for --pattern 2:4"),
        ({"method": "magnitude"}, "--amount must be given for --method magnitude"),
        ({"method": "channel", "pattern": "layer", "amount": 0.5}, "--pattern goes with --method magnitude alone"),
        ({"method": "magnitude", "amount": 0.999}, r"--amount must be at most 0\.\d+ for this network, got 0\.999:"),
    ],
)
def test_what_cannot_be_is_refused(place: Path, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune(place / "model", cache=place / "cache", out=tmp_path / "p", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "p").exists()


def test_the_bound_of_a_refusal_may_be_given_back(place: Path, tmp_path: Path) -> None:
    """It is cut, not rounded: what the message names is within what it allows."""
    with pytest.raises(InputError, match="at most") as refused:
        prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="magnitude", amount=0.999)
    bound = float(str(refused.value).split("at most ")[1].split()[0])
    prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="magnitude", amount=bound)


@pytest.mark.parametrize(("share", "text"), [(0.94996, "0.949"), (0.95, "0.95"), (0.1 + 0.2, "0.3"), (0.9996, "0.999")])
def test_a_bound_is_cut(share: float, text: str) -> None:
    assert floor_share(share) == text


def test_compressed_bytes_are_a_compressors(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(2_500_000))
    assert compressed_bytes(tmp_path / "zeros") < 10_000
