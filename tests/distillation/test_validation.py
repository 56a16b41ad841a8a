"""Held-out images decide: the best weights are remembered, a loss that does not fall ends the training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featcache.distillation.learner import FeatureLearner
from featcache.distillation.schedule import Schedule, Step
from featcache.distillation.settings import TrainingSettings
from featcache.distillation.targets import SoftLabels
from featcache.distillation.trainer import Trainer
from featcache.distillation.validation import Validation
from featcache.errors import InputError

N, WIDTH = 12, 5


class Noise:
    """Pixels that are a function of the image and the view."""

    def batch(self, positions: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return pixels (b, 8, 8, 3) uint8."""
        drawn = [
            np.random.default_rng([i, v]).integers(0, 256, (8, 8, 3)) for i, v in zip(positions, views, strict=True)
        ]
        return np.stack(drawn).astype(np.uint8)


class Answers:
    """Features that a fixed linear map of the pixels' means gives, as a teacher's."""

    feature_widths, n_soft_classes = (WIDTH,), 0

    def features(self, positions: np.ndarray, views: np.ndarray) -> list[np.ndarray]:
        """Return one teacher's features (b, WIDTH)."""
        means = Noise().batch(positions, views).mean(axis=(1, 2)) / 255
        return [(means @ np.random.default_rng(5).normal(size=(3, WIDTH))).astype(np.float32)]

    def soft_labels(self, positions: np.ndarray, views: np.ndarray) -> SoftLabels:
        """There are none."""
        raise NotImplementedError


class Pooled(nn.Module):
    """A 1x1 convolution and the mean of its map, with a norm and dropout that eval mode keeps still."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Conv2d(3, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.Dropout(0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return two outputs, together (b, WIDTH)."""
        features = self.drop(self.norm(self.layer(images)).mean(dim=(2, 3)))
        return features[:, :2], features[:, 2:]


def trainer_of(rate: float = 1e-2) -> tuple[Trainer, Schedule]:
    torch.manual_seed(0)
    learner = FeatureLearner(Pooled(), mean=np.zeros(WIDTH, np.float32), scale=np.ones(WIDTH, np.float32))
    settings = TrainingSettings(learning_rate=rate, batch_size=4, warmup_steps=0, average=0.0)
    trainer = Trainer(
        learner, settings, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), labels=np.full(N, -1), bf16=False,
        device=torch.device("cpu"),
    )  # fmt: skip
    return trainer, Schedule(N, views=2, settings=settings, steps=40)


def losses(history: Sequence[tuple[int, float]]) -> list[float]:
    return [loss for _, loss in history]


def test_loss_on_held_out_images_falls_and_the_best_weights_are_remembered() -> None:
    trainer, schedule = trainer_of()
    validation = Validation(4, Noise(), Answers(), every=10, patience=9)
    validation.check(trainer)
    for number in range(schedule.steps):
        step = schedule.step(number)
        trainer.step(schedule.steps, step, Noise().batch(step.positions, step.views), Answers())
        if trainer.number % validation.every == 0:
            validation.check(trainer)
    assert [step for step, _ in validation.history] == [0, 10, 20, 30, 40]
    assert validation.least < 0.5 * validation.start and validation.least == min(losses(validation.history))
    trainer.averaged = validation.best
    trainer.number = validation.best_step
    again = Validation(4, Noise(), Answers(), every=10, patience=9)
    again.check(trainer)
    assert losses(again.history) == [validation.least]


def test_loss_is_the_mean_over_all_held_out_images() -> None:
    trainer, _ = trainer_of()
    many = 70  # more than one batch
    validation = Validation(many, Noise(), Answers(), every=1, patience=1)
    validation.check(trainer)
    step = Step(np.arange(many), np.zeros(many, dtype=np.int64))
    trainer.student.eval()
    expected = trainer.answer_loss(step, Noise().batch(step.positions, step.views), Answers())
    assert validation.start == pytest.approx(expected, rel=1e-5)


def test_training_stops_after_so_many_checks_that_are_no_better() -> None:
    validation = Validation(1, Noise(), Answers(), every=1, patience=2)
    assert not validation.stops
    for step, (loss, stops) in enumerate([(1.5, False), (3.0, False), (2.0, False), (2.5, False), (2.2, True)]):
        validation.history.append((step, loss))
        assert validation.stops is stops
    assert (validation.start, validation.best_step, validation.least) == (1.5, 0, 1.5)
    validation.history.append((5, 1.4))
    assert (validation.best_step, validation.least, validation.stops) == (5, 1.4, False)


def test_checkpoint_holds_history_and_best_weights() -> None:
    trainer, _ = trainer_of()
    validation = Validation(4, Noise(), Answers(), every=1, patience=2)
    validation.check(trainer)
    other = Validation(4, Noise(), Answers(), every=1, patience=2)
    other.restore({**trainer.tensors(), **validation.tensors()}, [list(entry) for entry in validation.history])
    assert other.history == validation.history and other.best.keys() == validation.best.keys()
    assert all(torch.equal(other.best[name], tensor) for name, tensor in validation.best.items())


def test_feature_learner_stays_in_eval_mode() -> None:
    trainer, schedule = trainer_of()
    before = trainer.student.network.norm.running_mean.clone()  # type: ignore[union-attr, operator]
    step = schedule.step(0)
    trainer.step(schedule.steps, step, Noise().batch(step.positions, step.views), Answers())
    assert not any(module.training for module in trainer.student.modules())
    assert torch.equal(trainer.student.network.norm.running_mean, before)  # type: ignore[arg-type, union-attr]


def test_time_of_a_step_changes_nothing() -> None:
    trainer, _ = trainer_of()
    before = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    assert trainer.seconds_per_step(4, height=8, width=8) > 0
    after = trainer.tensors()
    assert before.keys() == after.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in trainer.student.parameters())


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("alpha", 2.0), ("learning_rate", -1.0)])
def test_training_settings_refuse_what_makes_no_sense(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]
