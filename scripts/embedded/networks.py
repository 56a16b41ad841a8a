"""Architectures that were tried and that timm does not know by a name; it does after `register`.

MobileNetV4-conv-small without the layer behind its pooling, ReLU throughout (Qin et al. 2024, arXiv 2404.10518): the
embedded backbone had it while it was trained from scratch, and the table of means is of it. The 1,280-wide layer that
timm's network has behind its pooling holds half of its parameters, for what a linear head does anyway; here the last
convolution is that wide.

EfficientNet-lite0 as narrow as the embedded backbone may be (Tan and Le 2019, arXiv 1905.11946).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from featcache.backbone.nano import SETTINGS, make_known

V4 = "mobilenetv4_conv_nano"
LITE = "efficientnet_lite0_065"
_STAGES = (
    ("cn_r1_k3_s2_e1_c32", "cn_r1_k1_s1_e1_c32"),
    ("cn_r1_k3_s2_e1_c96", "cn_r1_k1_s1_e1_c64"),
    ("uir_r1_a5_k5_s2_e3_c96", "uir_r4_a0_k3_s1_e2_c96", "uir_r1_a3_k0_s1_e4_c96"),
    ("uir_r1_a3_k3_s2_e6_c144", "uir_r1_a5_k5_s1_e4_c144", "uir_r1_a0_k5_s1_e4_c144", "uir_r1_a0_k5_s1_e3_c144",
     "uir_r2_a0_k3_s1_e4_c144"),
    ("cn_r1_k1_s1_c1280",),
)  # fmt: skip
default_cfgs: dict[str, Any] = {}  # where timm looks for what a network's module says of its input


def register() -> None:
    """Make the networks known to timm by their names."""
    for build in (mobilenetv4_conv_nano, efficientnet_lite0_065):
        make_known(build, {**SETTINGS, "input_size": (3, 96, 96), "pool_size": (3, 3)}, default_cfgs)


def mobilenetv4_conv_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return the network; timm calls this by its name. There are no weights of it."""
    from timm.models._builder import build_model_with_cfg
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.mobilenetv3 import MobileNetV3

    classes = kwargs.pop("num_classes", 1000)
    network = build_model_with_cfg(
        MobileNetV3,
        V4,
        pretrained,
        block_args=decode_arch_def([list(stage) for stage in _STAGES]),  # type: ignore[no-untyped-call]
        stem_size=32,
        act_layer=nn.ReLU,
        norm_layer=nn.BatchNorm2d,
        num_classes=0,
        **kwargs,
    )
    network.conv_head = nn.Identity()
    network.act2 = nn.Identity()
    network.reset_classifier(classes)
    return network


def efficientnet_lite0_065(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return EfficientNet-lite0, 0.65 times as wide: 1.62 million parameters. There are no weights of it."""
    from timm.models.efficientnet import _gen_efficientnet_lite

    return _gen_efficientnet_lite(LITE, channel_multiplier=0.65, pretrained=pretrained, **kwargs)
