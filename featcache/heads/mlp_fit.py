"""Fitting an MLP head with torch: AdamW, one cosine cycle, the best epoch on held-out rows kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featcache.errors import InputError
from featcache.heads.base import Floats
from featcache.system.threads import one_torch_thread

Layers = tuple[tuple[Floats, ...], tuple[Floats, ...]]
PATIENCE = 15
STEPS_PER_EPOCH = 16  # at least, so that a few hundred rows are not one step an epoch
BATCH_ROWS = (16, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpTraining:
    """`hidden`: widths of the hidden layers. `mixup`: Beta parameter of feature-space mixup, 0 for none."""

    hidden: tuple[int, ...]
    dropout: float
    learning_rate: float
    weight_decay: float
    epochs: int
    mixup: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpTargets:
    """What the rows should give: `targets` (n, k) float32 probabilities or values, all-zero rows being unlabelled.

    `weights` (n,) float32. `teacher`: None or (n, k) probabilities at `temperature`; the loss of a row is then
    (1 − alpha)·CE(target, student) + alpha·T²·KL(teacher ‖ student at T) (Hinton et al. 2015).
    """

    targets: Floats
    weights: Floats
    teacher: Floats | None = None
    alpha: float = 0.0
    temperature: float = 1.0


def fit_mlp(
    features: Floats,
    supervision: MlpTargets,
    *,
    task: str,
    training: MlpTraining,
    evaluate: Callable[[Callable[[npt.NDArray[Any]], Floats]], tuple[float, float]] | None,
    epochs: int | None = None,
) -> tuple[Layers, int]:
    """Return the layers acting on raw features (n, d), and the epoch (counted from 1) they were taken from.

    `evaluate`: given a function features → logits, returns (score, loss) on held-out rows; the epoch with the best
    score (the least loss among equals) wins and training stops after 15 epochs without a better one. None trains
    exactly `epochs` epochs. The same seed gives the same bits on one machine with the same number of threads. Batches
    of fewer than 256 rows are computed by one thread: handing work out takes longer than doing it.

    Raises `InputError` where the loss of an epoch is not finite.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    std = features.std(axis=0, dtype=np.float64)
    scale = np.where(std > 0, 1.0 / np.where(std > 0, std, 1.0), 0.0)
    rows = torch.from_numpy(((features - mean.astype(np.float32)) * scale.astype(np.float32)).astype(np.float32))
    n_classes = supervision.targets.shape[1]
    batch_rows = min(max(len(rows) // STEPS_PER_EPOCH, BATCH_ROWS[0]), BATCH_ROWS[1])
    threads = one_torch_thread() if batch_rows < BATCH_ROWS[1] else nullcontext()
    with threads, torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = _network(features.shape[1], n_classes, training)
        total = training.epochs if epochs is None else epochs
        optimizer = torch.optim.AdamW(  # fused: one sweep over the weights a step instead of ten
            network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        steps = math.ceil(len(rows) / batch_rows)
        cycle = max(training.epochs * steps, 1)
        best: tuple[float, float] | None = None
        kept, kept_epoch, step = _layers(network, mean, scale), 0, 0
        for epoch in range(1, total + 1):
            network.train()
            for batch in torch.split(torch.randperm(len(rows)), batch_rows):
                for group in optimizer.param_groups:
                    group["lr"] = training.learning_rate * 0.5 * (1 + math.cos(math.pi * step / cycle))
                loss = _loss(network, rows, supervision, batch, task=task, mixup=training.mixup)
                if not torch.isfinite(loss):
                    raise InputError(
                        f"the loss of an MLP must stay finite, got {loss.item()} in epoch {epoch} with learning_rate "
                        f"{training.learning_rate!r}: choose a smaller learning_rate"
                    )
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                step += 1
            network.eval()
            layers = _layers(network, mean, scale)
            if evaluate is None:
                kept, kept_epoch = layers, epoch
                continue
            score, held_out_loss = evaluate(_predictor(layers))
            if best is None or (score, -held_out_loss) > best:
                best, kept, kept_epoch = (score, -held_out_loss), layers, epoch
            elif epoch - kept_epoch >= PATIENCE:
                break
    return kept, kept_epoch


def _network(num_features: int, n_classes: int, training: MlpTraining) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = num_features
    for hidden in training.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(training.dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


def _loss(
    network: nn.Module, rows: Tensor, supervision: MlpTargets, batch: Tensor, *, task: str, mixup: float
) -> Tensor:
    x = rows[batch]
    index = batch.numpy()
    y = torch.from_numpy(supervision.targets[index])
    weight = torch.from_numpy(supervision.weights[index])
    teacher = None if supervision.teacher is None else torch.from_numpy(supervision.teacher[index])
    if mixup > 0:
        share = float(np.random.default_rng(int(torch.randint(2**31, ()))).beta(mixup, mixup))
        other = torch.randperm(len(batch))
        x, y = x.lerp(x[other], 1 - share), y.lerp(y[other], 1 - share)
        weight = weight.lerp(weight[other], 1 - share)
        teacher = None if teacher is None else teacher.lerp(teacher[other], 1 - share)
    logits = network(x)
    if task == "regression":
        losses = 0.5 * (logits - y).square().sum(dim=1)
    elif task == "multilabel":
        losses = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(dim=1)
    else:
        losses = -(y * logits.log_softmax(dim=1)).sum(dim=1)
    if teacher is not None:
        temperature = supervision.temperature
        student = (logits / temperature).log_softmax(dim=1)
        divergence = nn.functional.kl_div(student, teacher, reduction="none").sum(dim=1)
        losses = (1 - supervision.alpha) * losses + supervision.alpha * temperature**2 * divergence
    mean: Tensor = (losses * weight).sum() / weight.sum().clamp_min(1e-12)
    return mean


def _layers(network: nn.Module, mean: npt.NDArray[Any], scale: npt.NDArray[Any]) -> Layers:
    """Return copies of the weights and biases, the standardisation folded into the first layer."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    weights = [module.weight.detach().numpy().copy() for module in linear]
    biases = [module.bias.detach().numpy().copy() for module in linear]
    folded = weights[0].astype(np.float64) * scale
    weights[0] = folded.astype(np.float32)
    biases[0] = (biases[0] - folded @ mean).astype(np.float32)
    return tuple(weights), tuple(biases)


def _predictor(layers: Layers) -> Callable[[npt.NDArray[Any]], Floats]:
    from featcache.heads.mlp import MlpHead

    classes = tuple(str(i) for i in range(len(layers[1][-1])))
    return MlpHead(classes=classes, weights=layers[0], biases=layers[1]).predict_logits
