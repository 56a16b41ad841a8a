"""What a layer's answer is added to, and layers solved for the sum."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from featcache.backbone.timm_import import import_timm
from featcache.compression.compensation import compensate, record_answers
from featcache.compression.shortcuts import find_shortcuts


class Block(nn.Module):
    """An inverted residual: wide inside, added to its input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.project(torch.relu(self.expand(x))))


def residual(*, blocks: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    network = nn.Sequential(*(Block(8, 24) for _ in range(blocks))).eval().requires_grad_(False)
    for block in network:
        block.norm.weight.uniform_(0.5, 2)
        block.norm.running_var.uniform_(0.5, 2)
    return network


def test_a_block_s_input_is_found_behind_a_norm() -> None:
    network = residual()
    found = find_shortcuts(network, network, torch.randn(2, 8, 6, 6), ["0.project", "1.project", "1.expand"])
    assert {name: shortcut.reader for name, shortcut in found.items()} == {"0.project": "0", "1.project": "1"}
    norm = network[1].norm
    torch.testing.assert_close(found["1.project"].scale, norm.weight / (norm.running_var + norm.eps).sqrt())


@pytest.mark.parametrize(
    ("name", "layer", "reader"),
    [
        ("mobilenetv2_100", "blocks.2.1.conv_pwl", "blocks.2.1"),
        ("test_vit", "blocks.0.mlp.fc2", "blocks.0.norm2"),
        ("test_vit", "blocks.1.attn.proj", "blocks.1"),
        ("resnet18", "layer1.1.conv2", "layer1.0"),
    ],
)
def test_real_networks(name: str, layer: str, reader: str) -> None:
    options = {"zero_init_last": False} if name == "resnet18" else {}  # else its blocks add nothing
    network = import_timm().create_model(name, pretrained=False, num_classes=0, **options).eval()
    size = network.default_cfg["input_size"][1]
    found = find_shortcuts(network, network, torch.randn(2, 3, size, size), [layer])
    assert found[layer].reader.split(".")[:2] == reader.split(".")[:2]


def test_a_layer_that_nothing_is_added_to_has_none() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    assert find_shortcuts(network, network, torch.randn(2, 3, 5, 5), ["0", "2"]) == {}


def test_the_errors_of_earlier_blocks_are_taken_back() -> None:
    whole, images = residual(), torch.randn(96, 8, 6, 6)
    answers = list(record_answers(whole, whole, images, ["1.project", "2.project"]).values())
    exact = whole(images)

    def error(*, with_shortcuts: bool) -> float:
        small = copy.deepcopy(whole)
        small[0].project.weight *= 0.5
        if not with_shortcuts:
            for answer in answers:
                answer.shortcut = None
        compensate(small, small, images, answers)
        return float((small(images) - exact).square().mean())

    taken_back = error(with_shortcuts=True)
    assert taken_back < 0.8 * error(with_shortcuts=False)
