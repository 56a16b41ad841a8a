"""The student's loss: regression of the teacher's features, soft labels at a temperature, hard labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def feature_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of projected features (b, d) against standardised ones: 1 means nothing learned."""
    return functional.mse_loss(predicted, target)


def soft_loss(logits: Tensor, classes: Tensor, probabilities: Tensor, *, temperature: float) -> Tensor:
    """Return T²·KL(teacher_T ‖ student_T), averaged over the batch (Hinton et al. 2015).

    `logits` (b, n); `classes`, `probabilities` (b, k): the teacher's largest, already at the temperature. Where k < n
    the other classes are one event, "any other": the KL divergence of the distributions over these k + 1 events, which
    is at most that of the full ones (data processing inequality).
    """
    logs = functional.log_softmax(logits / temperature, dim=1)
    chosen = logs.gather(1, classes)
    kept = probabilities
    if classes.shape[1] < logits.shape[1]:
        rest = (1 - kept.sum(dim=1, keepdim=True)).clamp_min(0)
        others = logs.scatter(1, classes, float("-inf")).logsumexp(dim=1, keepdim=True)
        chosen = torch.cat([chosen, others], dim=1)
        kept = torch.cat([kept, rest], dim=1)
    divergence: Tensor = torch.special.xlogy(kept, kept) - kept * chosen
    return temperature * temperature * divergence.sum(dim=1).mean()


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of logits (b, n) against labels (b,), -1 being unlabelled; 0 where none is labelled."""
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0
    return functional.cross_entropy(logits[known], labels[known])
