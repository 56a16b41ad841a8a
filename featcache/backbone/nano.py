"""The architecture of the embedded backbone: MobileNetV2, as narrow as `featcache prune` left it.

Convolutions and ReLU6 alone (Sandler et al. 2018, arXiv 1801.04381): no squeeze-and-excite and no hard-swish, whose
rounding costs an INT8 network accuracy and time. Stages, strides, the 1,280 features and the padding (TensorFlow's) are
those of the MobileNetV2 that it begins as; the stem and the inner width of each block are what channel pruning chose
for photos of 128 pixels.

timm knows it by its name after `register`, which `import_timm` calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

NANO = "mobilenetv2_nano"
STEM = 16
# Of each stage: stride, width of its blocks' sums, and the width inside of each block.
STAGES = (
    (2, 24, (64, 96)),
    (2, 32, (80, 112, 112)),
    (2, 64, (176, 256, 224, 192)),
    (1, 96, (352, 288, 288)),
    (2, 160, (544, 640, 512)),
    (1, 320, (784,)),
)
FEATURES = 1280
SETTINGS: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 128, 128),
    "pool_size": (4, 4),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "first_conv": "conv_stem",
    "classifier": "classifier",
}
default_cfgs: dict[str, Any] = {}  # where timm looks for what a network's module says of its input


def register() -> None:
    """Make the network known to timm by its name."""
    make_known(mobilenetv2_nano, SETTINGS, default_cfgs)


def make_known(build: Callable[..., nn.Module], settings: dict[str, Any], configs: dict[str, Any]) -> None:
    """Make a network known to timm by the name of the function that builds it.

    `settings`: what timm's `PretrainedCfg` says of its input. `configs`: ``default_cfgs`` of that function's module,
    where timm looks for them.
    """
    from timm.models import generate_default_cfgs, is_model, register_model

    if not is_model(build.__name__):
        configs.update(generate_default_cfgs({build.__name__: settings}))
        register_model(build)


def mobilenetv2_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return the network; timm calls this by its name. There are no weights of it but those in this package."""
    from timm.models._builder import build_model_with_cfg
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    return build_model_with_cfg(
        EfficientNet,
        NANO,
        pretrained,
        block_args=decode_arch_def(_definition()),  # type: ignore[no-untyped-call]
        num_features=FEATURES,
        stem_size=STEM,
        act_layer=nn.ReLU6,
        norm_layer=nn.BatchNorm2d,
        **{"pad_type": "same", **kwargs},
    )


def _definition() -> list[list[str]]:
    """Return the blocks in timm's words, which give an inner width as a multiple of what comes in."""
    stages, coming = [["ds_r1_k3_s1_c16_noskip"]], 16  # the stem had 32 channels and no sum behind it
    for stride, width, inner in STAGES:
        blocks = []
        for number, inside in enumerate(inner):
            blocks.append(f"ir_r1_k3_s{1 if number else stride}_e{inside / coming}_c{width}")
            coming = width
        stages.append(blocks)
    return stages
