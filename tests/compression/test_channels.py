"""Channels that go: which ones, what the others become, and what that leaves of the features."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_photo
from small_models import merged, write_photos
from torch import Tensor, nn

from featcache.backbone.timm_import import import_timm
from featcache.cache import open_cache
from featcache.compression.allocation import allocate, convex_errors, widths_of
from featcache.compression.channels import TOLERANCE, remove_channels, training_images
from featcache.compression.compensation import compensate, moments_of, record_answers
from featcache.compression.costs import LayerCost, NetworkCost
from featcache.compression.groups import ChannelGroup, find_groups
from featcache.compression.measurement import graph_macs
from featcache.compression.moments import Moments, solve_all, solve_kept
from featcache.compression.pruning import prune
from featcache.compression.refitting import Source, open_source
from featcache.compression.selection import removal_order
from featcache.errors import InputError
from featcache.extract.build import build_cache
from featcache.graph.write import write_onnx
from featcache.model.directory import load_model
from featcache.model.merged import with_network
from featcache.model.merging import merge
from featcache.model.widths import changed_widths, layer_widths, resize_layers
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("channels"))


def made(photos: Path, backbone: str) -> Path:
    """Return the folder with the cache and the model of `backbone` on the photos, made once."""
    return merged(photos, photos.parent / backbone, backbone)


def centred(inputs: Tensor, outputs: Tensor) -> Moments:
    return Moments.of(inputs, outputs, centred=True)


def test_solving_gives_what_least_squares_gives() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(400, 12) @ torch.randn(12, 12) + 3
    outputs = inputs @ torch.randn(12, 5) + 0.1 * torch.randn(400, 5)
    solved = solve_all(torch.zeros(5, 12), centred(inputs, outputs), ridge=1e-9)
    design = torch.cat([inputs, torch.ones(400, 1)], dim=1)
    expected = torch.linalg.lstsq(design, outputs).solution[:12].T
    torch.testing.assert_close(solved, expected, rtol=1e-3, atol=1e-3)


def test_weights_of_removed_inputs_are_zero_and_the_others_take_over() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(500, 6)
    inputs[:, 5] = inputs[:, 0] + 2 * inputs[:, 1]  # what the last input says, the first two say as well
    weight = torch.randn(3, 6)
    moments = centred(inputs, inputs @ weight.T)
    kept = torch.tensor([True] * 5 + [False])
    solved = solve_kept(weight, moments, kept, ridge=1e-9)
    assert (solved[:, 5] == 0).all()
    assert moments.error(solved) < 1e-5 < 1e-3 < moments.error(weight * kept)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_order_of_removal_is_that_of_the_exact_losses(kernel: int) -> None:
    """The first channel to go is the one without which a new solution loses least, as solving each case shows."""
    torch.manual_seed(1)
    block = kernel * kernel
    inputs = torch.randn(600, 7 * block) @ torch.randn(7 * block, 7 * block)
    weight = torch.randn(4, 7 * block)
    moments = centred(inputs, inputs @ weight.T)
    removal = removal_order({"reader": weight}, {"reader": moments}, width=7, unit=1, kept=[6], ridge=1e-9)
    losses = []
    for channel in range(7):
        kept = torch.ones(7, dtype=torch.bool)
        kept[channel] = False
        losses.append(moments.error(solve_kept(weight, moments, kept.repeat_interleave(block), ridge=1e-9)))
    assert removal.order.tolist() == [int(np.argmin(losses))]
    assert removal.errors[6] == pytest.approx(min(losses), rel=1e-2)
    torch.testing.assert_close(moments.error(removal.weights[6]["reader"]), min(losses), rtol=1e-2, atol=1e-6)


def test_heads_go_whole() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(300, 24)
    weight = torch.randn(5, 24)
    removal = removal_order({"proj": weight}, {"proj": centred(inputs, inputs @ weight.T)}, width=24, unit=8, kept=[8])
    gone = sorted(removal.order.tolist())
    assert len(gone) == 16
    assert {channel // 8 for channel in gone} == {gone[0] // 8, gone[-1] // 8}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 3, 3, stride=2, padding=1, bias=False), (2, 4, 9, 11)),
        (nn.Conv2d(4, 3, (1, 3), padding=(0, 1), dilation=(1, 2), bias=False), (2, 4, 6, 7)),
        (nn.Conv2d(4, 3, 1, bias=False), (2, 4, 5, 5)),
        (nn.Linear(6, 3, bias=False), (2, 7, 6)),
        (nn.Linear(6, 3, bias=False), (2, 6)),
    ],
)
def test_sampled_inputs_are_what_the_layer_multiplies(layer: nn.Module, shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    network = nn.Sequential(layer)
    answer = record_answers(network, network, images, ["0"], moments=True)["0"]
    weight: Tensor = layer.weight.detach().flatten(1)  # type: ignore[union-attr, operator]
    assert moments_of(answer).error(weight) < 1e-6


def test_padding_inside_timms_layer_is_seen() -> None:
    timm = import_timm()
    layer = timm.layers.create_conv2d(3, 4, 3, stride=2, padding="same")
    network = nn.Sequential(layer)
    answer = record_answers(network, network, torch.randn(2, 3, 8, 8), ["0"], moments=True)["0"]
    assert moments_of(answer).error(layer.weight.detach().flatten(1)) < 1e-6


def test_each_layer_is_solved_for_what_the_solved_ones_before_give() -> None:
    """Two layers of a chain are damaged; solved in flight, the chain's end is nearer than with each solved alone."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).requires_grad_(False)
    images = torch.randn(512, 8)
    answers = record_answers(whole, whole, images, ["2", "4"], moments=True)
    kept = torch.ones(8, dtype=torch.bool)
    kept[:3] = False
    network = copy.deepcopy(whole)
    compensate(
        network,
        network,
        images,
        list(answers.values()),
        solve=lambda name, weight, moments: solve_kept(weight, moments, kept),
    )
    alone = copy.deepcopy(whole)
    for place, name in ((2, "2"), (4, "4")):
        moments = moments_of(answers[name])
        alone[place].weight.copy_(solve_kept(whole[place].weight, moments, kept))
    assert (network(images) - whole(images)).square().mean() < 0.8 * (alone(images) - whole(images)).square().mean()
    assert (network[2].weight[:, :3] == 0).all()


def test_the_batch_norm_that_follows_takes_the_mean_error_back() -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    images = torch.rand(32, 6, 5, 5) + 1
    answers = record_answers(whole, whole, images, ["0"])
    assert answers["0"].norm == "1"
    network = copy.deepcopy(whole)
    kept = torch.tensor([True, True, False, False, False, False])
    compensate(
        network,
        network,
        images,
        list(answers.values()),
        solve=lambda name, weight, moments: solve_kept(weight, moments, kept),
    )
    torch.testing.assert_close(network(images).mean((0, 2, 3)), whole(images).mean((0, 2, 3)), atol=1e-4, rtol=1e-4)


def test_groups_of_a_transformer_are_its_heads_and_the_inside_of_its_mlps(photos: Path) -> None:
    place = made(photos, "test_vit")
    groups = find_groups(load_model(place / "model"))
    heads = [group for group in groups if group.attention is not None]
    assert heads and all(group.unit > 1 and group.readers == (f"{group.attention}.proj",) for group in heads)
    assert {group.name.rpartition(".")[2] for group in groups if group.attention is None} == {"fc1"}


def test_the_residual_stream_and_the_features_are_no_group(photos: Path) -> None:
    place = made(photos, "test_resnet")
    names = {group.name for group in find_groups(load_model(place / "model"))}
    assert names
    assert not any(name.endswith("conv3") or "downsample" in name for name in names)


def test_a_gate_is_carried_and_its_reader_solved_too(photos: Path) -> None:
    place = made(photos, "mobilenetv3_small_050")
    groups = find_groups(load_model(place / "model"))
    gated = [group for group in groups if any("se.conv_reduce" in name for name in group.readers)]
    assert gated
    assert all(any("se.conv_expand" in name for name in group.outs) for group in gated)


@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv3_small_050", "test_vit", "test_convnext"])
def test_narrowed_networks_are_built_again_and_nearer_than_unsolved_ones(photos: Path, backbone: str) -> None:
    place = made(photos, backbone)
    with open_cache(place / "cache") as cache:
        source = open_source(place / "model", cache, dataset=None)
        macs = graph_macs(write_onnx(source.model, place / "before.onnx"))
        narrowing = remove_channels(source, amount=0.2, target="macs", macs=macs)
        images = source.model.normalise(training_images(source, 24))
    model = with_network(source.model, narrowing.network)
    left = graph_macs(write_onnx(model, place / "after.onnx")) / macs
    assert left == pytest.approx(0.8, abs=TOLERANCE * 0.8)
    again = import_timm().create_model(backbone)
    again.reset_classifier(0)
    resize_layers(again.eval(), changed_widths(narrowing.network, layer_widths(source.model.backbone.network)))
    again.load_state_dict(narrowing.network.state_dict())
    with torch.inference_mode():
        assert torch.equal(narrowing.network(images[:2]), again(images[:2]))
    assert narrowing.feature_error < 0.5  # of the features' variance; random weights, two dozen images


@pytest.mark.long
def test_parameters_can_be_what_is_counted(photos: Path, tmp_path: Path) -> None:
    place = made(photos, "mobilenetv3_small_050")
    result = prune(place / "model", cache=place / "cache", out=tmp_path / "p", amount=0.2, target="parameters")
    assert result.parameters / load_model(place / "model").parameter_count() == pytest.approx(0.8, abs=0.02)


@pytest.mark.long
def test_latency_can_be_what_is_measured(photos: Path) -> None:
    """What is promised of a latency is that widths were chosen by it: a clock says something else each time."""
    place = made(photos, "test_resnet")
    with open_cache(place / "cache") as cache:
        source = open_source(place / "model", cache, dataset=None)
        try:
            narrowing = remove_channels(source, amount=0.1, target="latency", macs=0)
        except InputError as error:
            assert "latency" in str(error)
        else:
            assert any(after < before for before, after in narrowing.widths.values())


def test_a_vit_loses_heads_and_is_quantized_and_exported_like_any_model(photos: Path, tmp_path: Path) -> None:
    place = made(photos, "test_vit")
    prune(place / "model", cache=place / "cache", out=tmp_path / "p", amount=0.3)
    model = load_model(tmp_path / "p")
    assert any("heads" in widths for widths in model.surgery.widths.values())
    write_onnx(model, tmp_path / "model.onnx")


@pytest.mark.parametrize(("target", "method"), [("watts", "channel"), ("parameters", "magnitude")])
def test_targets_that_make_no_sense_are_refused(photos: Path, tmp_path: Path, target: str, method: str) -> None:
    place = made(photos, "test_resnet")
    with pytest.raises(InputError, match="--target"):
        prune(
            place / "model",
            cache=place / "cache",
            out=tmp_path / "p",
            amount=0.2,
            target=target,
            method=method,  # type: ignore[arg-type]
        )


def test_images_that_changed_do_not_count(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    build_cache(tmp_path / "photos", tmp_path / "cache", backbone="test_resnet", weights="random:3", precision="fp32")
    train_head(tmp_path / "cache", head=LinearOptions(l2=0.1)).save(tmp_path / "head")
    merge(tmp_path / "head", tmp_path / "cache", out=tmp_path / "model")
    with open_cache(tmp_path / "cache") as cache:
        source: Source = open_source(tmp_path / "model", cache, dataset=None)
        file = Path(cache.samples().listing.absolute(int(cache.select(split="train").indices[0])))
        whole = training_images(source, 24)
        write_photo(file, seed=999, size=(180, 170))
        assert len(training_images(source, 24)) == len(whole) - 1


def test_widths_are_multiples_and_never_empty() -> None:
    assert widths_of(32, 1, 8) == [32, 24, 16, 8]
    assert widths_of(20, 1, 8) == [20, 16, 8]
    assert widths_of(96, 32, 8) == [96, 64, 32]


def test_errors_that_fall_again_are_noise() -> None:
    errors = convex_errors([32, 24, 16, 8], {24: 0.2, 16: 0.1, 8: 0.6})
    assert errors == pytest.approx([0.0, 0.1, 0.2, 0.6])


def test_the_cheapest_loss_goes_first() -> None:
    groups = [ChannelGroup(name, 16, 1, (), (name,), ()) for name in ("a", "b")]
    cost = NetworkCost({"a": LayerCost(100, ("a",)), "b": LayerCost(10, ("b",))}, groups, rest=0)
    widths = allocate({"a": [16, 8], "b": [16, 8]}, {"a": [0.0, 0.1], "b": [0.0, 0.1]}, cost, target=70)
    assert widths == {"a": 8, "b": 16}


def test_more_than_can_go_is_refused_with_the_most_that_can(photos: Path) -> None:
    place = made(photos, "test_resnet")
    with open_cache(place / "cache") as cache:
        source = open_source(place / "model", cache, dataset=None)
        macs = graph_macs(write_onnx(source.model, place / "before.onnx"))
        with pytest.raises(InputError, match=r"at most 0\.\d\d for 'test_resnet'"):
            remove_channels(source, amount=0.99, target="macs", macs=macs)
