"""Keep a step only where val does not say that it made things worse: paired, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.train.score import SCORE_NAMES, score_logits, sign_test

if TYPE_CHECKING:
    from featcache.heads import Head

CHANCE = 0.05  # two-sided: flips as uneven as this or more are no longer put down to chance


def reason_to_drop(old: Head, new: Head, features: npt.NDArray[np.float32], targets: npt.NDArray[Any]) -> str | None:
    """Return why `new` is not to replace `old` by the rows of val, both on the same `features`; None where it may.

    It may not where it scores lower beyond chance, nor where it scores lower by an amount that could be chance and its
    loss, which every row has a say in, is larger too.
    """
    logits = [head.predict_logits(features) for head in (old, new)]
    before, after = (score_logits(values, targets, task=old.task) for values in logits)
    if after.value >= before.value:
        return None
    gained, lost = _won_and_lost(logits[0], logits[1], targets, task=old.task)
    chance = sign_test(gained, lost)
    beyond_chance = lost > gained and chance < CHANCE
    if not beyond_chance and after.loss <= before.loss:
        return None
    figures = f"{SCORE_NAMES[old.task].replace('_', ' ')} {before.value:.4g} before, {after.value:.4g} after"
    why = "beyond chance" if beyond_chance else "and its loss larger"
    return (
        f"val says that it is worse, {why}: {figures}, {gained} images won and {lost} lost of {len(targets)} "
        f"(p = {chance:.2g})"
    )


def _won_and_lost(
    before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], targets: npt.NDArray[Any], *, task: str
) -> tuple[int, int]:
    """Return of how many images the answer became right (its error smaller), and of how many wrong (larger)."""
    if task == "classification":
        right = [values.argmax(axis=1) == targets for values in (before, after)]
        return int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    losses = [
        np.array([score_logits(values[i : i + 1], targets[i : i + 1], task=task).loss for i in range(len(values))])
        for values in (before, after)
    ]
    return int((losses[1] < losses[0]).sum()), int((losses[1] > losses[0]).sum())
