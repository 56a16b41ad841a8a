"""How well a student with a classifier over the images' classes does on the val split."""

from __future__ import annotations

import dataclasses

import numpy as np

from featcache.distillation.join import Images
from featcache.distillation.replay import StreamedViews
from featcache.distillation.trainer import Trainer
from featcache.images.view_spec import ViewSpec

_BATCH = 256


def val_accuracy(trainer: Trainer, val: Images, spec: ViewSpec) -> float | None:
    """Return the accuracy on the plain views of `val` of an averaged student that learns labels; None without any."""
    if not len(val):
        return None
    views = StreamedViews(val, dataclasses.replace(spec, views=(0,)))
    correct = 0
    with trainer.averaged_weights():
        for start in range(0, len(val), _BATCH):
            positions = np.arange(start, min(len(val), start + _BATCH))
            predicted = trainer.predict(views.batch(positions, np.zeros_like(positions)))
            correct += int((predicted == val.labels[positions]).sum())
    return correct / len(val)
