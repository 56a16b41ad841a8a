"""Distillation: where a teacher helps, Hinton's loss, and teachers that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import MemoryCache, digests_of, make_samples
from train_caches import noisy_students, refuse

from featcache.train.fit import train_head
from featcache.train.options import (
    DistillationOptions,
    KnnOptions,
    LinearOptions,
    MlpOptions,
)


def test_a_teacher_helps_where_labels_are_noisy():
    cache, teacher = noisy_students()
    plain, guided = train_head(cache), train_head(cache, distillation=DistillationOptions(teacher=teacher, alpha=0.5))
    none = train_head(cache, distillation=DistillationOptions(teacher=teacher, alpha=0.0))
    assert np.array_equal(none.head.weight, plain.head.weight)
    assert guided.test_accuracy >= plain.test_accuracy + 0.03
    assert guided.details["teacher"]["head"] == "trained"


def distilled_loss(weight, bias, cache, teacher_q, *, alpha, temperature, l2):
    selection = cache.select(split="train")
    x = cache.gather(selection.rows).astype(np.float64)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    logits = z @ weight.T + bias

    def log_softmax(u):
        u = u - u.max(axis=1, keepdims=True)
        return u - np.log(np.exp(u).sum(axis=1, keepdims=True))

    hard = -log_softmax(logits)[np.arange(len(x)), selection.labels].mean()
    soft = (teacher_q * (np.log(teacher_q) - log_softmax(logits / temperature))).sum(axis=1).mean()
    return (1 - alpha) * hard + alpha * temperature**2 * soft + l2 / 2 * (weight**2).sum()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distilled_head_is_a_minimum_of_hintons_loss(temperature):
    """The gradient, by central differences of the loss written out here, vanishes at the solution and not beside it."""
    cache, teacher = noisy_students()
    master = train_head(teacher, head=LinearOptions(l2=0.1)).head
    settings = {"alpha": 0.4, "temperature": temperature}
    distillation = DistillationOptions(teacher=teacher, teacher_head=master, **settings)
    head = train_head(cache, head=LinearOptions(l2=0.05), distillation=distillation).head
    selection = cache.select(split="train")
    with teacher.reader() as reader:
        rows = reader.find(cache.samples().digests[selection.indices])
    logits = master.predict_logits(teacher.gather(rows)).astype(np.float64) / temperature
    q = np.exp(logits - logits.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    x = cache.gather(selection.rows).astype(np.float64)
    weight = head.weight.astype(np.float64) * x.std(axis=0)
    bias = head.bias + head.weight.astype(np.float64) @ x.mean(axis=0)

    def slope(at_weight, direction):
        step = 1e-4
        plus, minus = (
            distilled_loss(at_weight + s * direction, bias, cache, q, l2=0.05, **settings) for s in (step, -step)
        )
        return (plus - minus) / (2 * step)

    generator = np.random.default_rng(0)
    for _ in range(8):
        direction = generator.normal(size=weight.shape)
        direction /= np.linalg.norm(direction)
        assert abs(slope(weight, direction)) < 1e-3
        assert abs(slope(weight + 0.5 * direction, direction)) > 1e-2


def test_unlabelled_images_take_part_through_the_teacher():
    cache, teacher = noisy_students(noise=0.0, free=520)
    plain = train_head(cache)
    guided = train_head(cache, distillation=DistillationOptions(teacher=teacher, alpha=0.7))
    assert plain.n_unlabelled == 0
    assert guided.n_unlabelled == 520
    assert guided.n_train == plain.n_train == 20
    assert guided.test_accuracy >= plain.test_accuracy + 0.03


def test_an_mlp_learns_from_a_teacher():
    cache, teacher = noisy_students()
    plain = train_head(cache, head=MlpOptions(epochs=15, hidden=(64,)))
    guided = train_head(
        cache, head=MlpOptions(epochs=15, hidden=(64,)), distillation=DistillationOptions(teacher=teacher, alpha=0.9)
    )
    assert guided.test_accuracy >= plain.test_accuracy + 0.03


def test_stored_logits_serve_as_the_teacher_where_they_fit():
    cache, teacher = noisy_students()
    logits = train_head(teacher, head=LinearOptions(l2=0.1)).head.predict_logits(teacher.arrays["features"])
    with_logits = MemoryCache({"features": teacher.arrays["features"], "logits": logits}, teacher.samples())
    guided = train_head(cache, head=LinearOptions(l2=0.1), distillation=DistillationOptions(teacher=with_logits))
    assert guided.details["teacher"]["head"] == "logits"
    named = train_head(
        cache, head=LinearOptions(l2=0.1), distillation=DistillationOptions(teacher=teacher, teacher_head={"l2": 0.1})
    )
    assert np.allclose(named.head.weight, guided.head.weight, atol=1e-4)


def test_a_teacher_with_other_classes_is_refused():
    cache, teacher = noisy_students()
    names = ("class0", "class1", "class2", "class3", "extra")
    other = MemoryCache(teacher.arrays, make_samples(teacher.samples().labels, ["train"] * 900, classes=names))
    head = train_head(other, head=LinearOptions(l2=1.0)).head
    refuse(
        cache,
        r"it lacks \['class4'\] and it has besides \['extra'\]",
        distillation=DistillationOptions(teacher=teacher, teacher_head=head),
    )


def test_a_teacher_of_other_images_is_refused():
    cache, teacher = noisy_students()
    others = MemoryCache(teacher.arrays, teacher.samples(), digests=digests_of(900, salt=1))
    head = train_head(teacher, head=LinearOptions(l2=1.0)).head
    refuse(cache, "540 of 540 are missing", distillation=DistillationOptions(teacher=others, teacher_head=head))


def test_a_teacher_that_cannot_be_used_is_refused():
    cache, teacher = noisy_students()
    refuse(cache, "teacher needs kind", head=KnnOptions(), distillation=DistillationOptions(teacher=teacher))
    refuse(
        cache,
        "label_smoothing and a teacher",
        head=LinearOptions(label_smoothing=0.1),
        distillation=DistillationOptions(teacher=teacher),
    )
