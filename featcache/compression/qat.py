"""Training with the rounding inside (QAT): from the calibrated integers toward the cached float features.

Weights, biases and the steps of all roundings are learned (`featcache.compression.fake_quantization`) by the loop that
recovers pruned networks. Zero points stay, and so does which operations compute in integers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from featcache.compression.fake_quantization import FakeQuantized
from featcache.compression.folded import FoldedModel
from featcache.compression.layerwise import Calibrated
from featcache.compression.recovery import Minutes, Recovery, RecoverySettings, recover_network
from featcache.compression.refitting import Source
from featcache.model.quantization import QuantParams

# `featcache_nano` on tinyimagenet200, features calibrated to an error of 0.0211: 0.0199 after 82 steps of 64 images.
# At 1e-4 the error first rose to 0.0237, which early stopping may not wait for, and was 0.0199 after 136.
LEARNING_RATE = 3e-5
_REACH = np.float32(0.49)  # of a step: what rounds to the same integer


def training_settings(minutes: Minutes) -> RecoverySettings:
    """Return how a quantized network is trained for so long; raises `InputError` for minutes out of range."""
    # bfloat16 rounds as coarsely as 8 bits do: what is to be learned would drown in it
    return RecoverySettings(minutes=minutes, learning_rate=LEARNING_RATE, precision="fp32")


def train_quantized(
    folded: FoldedModel,
    calibrated: Calibrated,
    source: Source,
    settings: RecoverySettings,
    *,
    limit: int,
    work: Path,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Calibrated, Recovery]:
    """Return the weights and scales that training from `calibrated` found, and what was done.

    What val says is no nearer to the float network is not kept: then `calibrated` is returned. `limit`: the largest
    integer of a weight. `work`: for checkpoints, as in `recover_network`.
    """
    network = fake_quantized(folded, calibrated, limit=limit)
    teacher = source.model if source.model.recipe.model_digest is None else None
    recovery = recover_network(network, source, settings, work=work, teacher=teacher, say=say)
    return (network.learned() if recovery.kept else calibrated), recovery


def fake_quantized(folded: FoldedModel, calibrated: Calibrated, *, limit: int) -> FakeQuantized:
    """Return the network to train: it begins with the integers of `calibrated`, weights' being at most `limit`."""
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in folded.graph.graph.initializer}
    weights = calibrated.quantization.weights
    start = {
        name: start_within(exact[name], value, weights[name]) if name in weights else value
        for name, value in calibrated.values.items()
    }
    return FakeQuantized(folded.graph, calibrated.quantization, values=start, trainable=folded.adjustable, limit=limit)


def start_within(
    exact: npt.NDArray[np.float32], rounded: npt.NDArray[np.float32], params: QuantParams
) -> npt.NDArray[np.float32]:
    """Return a weight that rounds to `rounded`, and is otherwise as near to `exact` as that lets it be.

    Training then begins with the calibrated integers, and a weight that was rounded the other way is a short way from
    where it would change.
    """
    assert params.axis is not None
    shape = [1] * exact.ndim
    shape[params.axis] = -1
    reach = _REACH * np.array(params.scale, dtype=np.float32).reshape(shape)
    within: npt.NDArray[np.float32] = np.clip(exact, rounded - reach, rounded + reach)
    return within
