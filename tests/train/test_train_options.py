"""The option classes: what each refuses, what a kind does not have, and that the command can show every field."""

from __future__ import annotations

import dataclasses

import pytest

from featcache.errors import InputError
from featcache.train.options import (
    HEAD_OPTIONS,
    DistillationOptions,
    KnnOptions,
    LinearOptions,
    MlpOptions,
    PrototypeOptions,
    TrainOptions,
    options_of_kind,
)
from featcache.train.settings import TrainSettings

OPTION_CLASSES = (*HEAD_OPTIONS.values(), TrainOptions, DistillationOptions)


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        (LinearOptions, {"l1": -1.0}, "l1 must be 'auto' or a number of at least 0, got -1.0"),
        (LinearOptions, {"l1": True}, "l1 must be 'auto' or a number"),
        (LinearOptions, {"l2": float("nan")}, "l2 must be"),
        (LinearOptions, {"group_l1": "most"}, "group_l1 must be"),
        (LinearOptions, {"l1": "auto", "l2": "auto"}, "at most one penalty"),
        (LinearOptions, {"l1": 0.1, "group_l1": 0.1}, "cannot both"),
        (LinearOptions, {"l2": 0.0}, "above 0"),
        (LinearOptions, {"standard_error_rule": True, "l2": 1.0}, "standard_error_rule needs a penalty to choose"),
        (LinearOptions, {"keep_features": 0.0}, "keep_features must be above 0 and at most 1"),
        (LinearOptions, {"keep_features": 0.5, "l1": 0.1}, "keep_features goes with l2 alone"),
        (LinearOptions, {"keep_features": 0.5, "block_scales": "auto"}, "cannot go together"),
        (LinearOptions, {"block_scales": [0.0]}, "block_scales must be"),
        (LinearOptions, {"block_scales": "equal"}, "block_scales must be"),
        (LinearOptions, {"label_smoothing": 1.0}, "label_smoothing must be"),
        (LinearOptions, {"class_weight": "heavy"}, "class_weight must be"),
        (LinearOptions, {"mixup": -0.1}, "mixup must be"),
        (LinearOptions, {"mixup": 0.2, "mixup_copies": 0}, "mixup_copies must be a whole number of at least 1"),
        (MlpOptions, {"hidden": (2.5,)}, "hidden must be"),
        (MlpOptions, {"dropout": 1.0}, "dropout must be"),
        (MlpOptions, {"epochs": 0}, "epochs must be"),
        (MlpOptions, {"mixup": "some"}, "mixup must be a number"),
        (PrototypeOptions, {"metric": "angle"}, "metric must be one of"),
        (PrototypeOptions, {"sharpness": 0.0}, "sharpness must be above 0"),
        (KnnOptions, {"sharpness": -1.0}, "sharpness must be above 0"),
        (KnnOptions, {"neighbors": 0}, "neighbors must be"),
        (TrainOptions, {"folds": 1}, "folds must be"),
        (TrainOptions, {"folds": 2.5}, "folds must be a whole number"),
        (TrainOptions, {"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        (TrainOptions, {"views": (0, 0)}, "views must not name one twice"),
        (TrainOptions, {"views": ()}, "views must be"),
        (TrainOptions, {"outputs": ["features", "features"]}, "outputs must not name one twice"),
        (TrainOptions, {"outputs": []}, "outputs must name one or more"),
        (TrainOptions, {"unknown": "entropy"}, "unknown must be"),
        (DistillationOptions, {"teacher": "t", "alpha": 1.5}, "alpha must be"),
        (DistillationOptions, {"teacher": "t", "temperature": 0.0}, "temperature must be"),
    ],
    ids=str,
)
def test_options_outside_their_range_are_refused(options, settings, message):
    """At the border, in one line, before a cache is opened."""
    with pytest.raises(InputError, match=message) as caught:
        options(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (LinearOptions, "hidden"),
        (LinearOptions, "metric"),
        (MlpOptions, "mixup_copies"),
        (MlpOptions, "keep_features"),
        (PrototypeOptions, "mixup"),
        (KnnOptions, "l2"),
        (KnnOptions, "block_scales"),
        (KnnOptions, "label_smoothing"),
        (TrainOptions, "alpha"),
    ],
)
def test_setting_of_another_kind_is_no_parameter(options, setting):
    """A head is not given what it would ignore: the class of its options does not have it."""
    with pytest.raises(TypeError, match=setting):
        options(**{setting: 1})


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        (LinearOptions, {"mixup_copies": 3}, "mixup_copies needs mixup above 0"),
        (TrainOptions, {"unknown_accept": 0.5}, "unknown_accept needs a rule"),
    ],
)
def test_setting_of_something_left_out_is_refused(options, settings, message):
    """Copies of mixes without mixup, a share that no rule accepts: they would change nothing."""
    with pytest.raises(InputError, match=message):
        options(**settings)


def test_distillation_without_teacher_is_no_value():
    """alpha, temperature and unlabelled images belong to a teacher, which has no default."""
    with pytest.raises(TypeError, match="teacher"):
        DistillationOptions(alpha=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "forest"}, "kind must be one of"),
        ({"kind": "knn", "l2": 1.0}, "kind 'knn' has no setting 'l2'"),
        ({"hidden": [3]}, "kind 'linear' has no setting 'hidden'"),
        ({"alpha": 0.5}, "alpha needs a teacher"),
        ({"unlabelled": "x"}, "unlabelled needs a teacher"),
        ({"kind": "knn", "teacher": "t"}, "a teacher needs kind 'linear' or 'mlp'"),
        ({"teacher": "t", "label_smoothing": 0.1}, "label_smoothing and a teacher"),
        ({"teacher": "t", "mixup": 0.1}, "mixup and a teacher"),
    ],
    ids=str,
)
def test_stored_settings_that_no_head_has_are_refused(values, message):
    """What a head.json states is read by the same classes."""
    with pytest.raises(InputError, match=message):
        TrainSettings.from_json(values)


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(head=LinearOptions(l2=0.1, block_scales=[1, 2]), options=TrainOptions(views=[0, 2], seed=3)),
        TrainSettings(head=MlpOptions(hidden=[8, 4], mixup=0.3)),
        TrainSettings(head=KnnOptions(neighbors=3), options=TrainOptions(outputs=["a", "b"], unknown="auto")),
        TrainSettings(distillation=DistillationOptions(teacher="/caches/t", teacher_head="/heads/t", alpha=0.2)),
    ],
    ids=["linear", "mlp", "knn", "distilled"],
)
def test_settings_as_json_come_back_equal(settings):
    """One flat object holds them, of JSON values, and only what differs from the defaults."""
    values = settings.to_json()
    assert TrainSettings.from_json(values) == settings
    assert all(not isinstance(value, tuple) for value in values.values())
    assert "dropout" not in values


@pytest.mark.parametrize("options", OPTION_CLASSES, ids=lambda options: options.__name__)
def test_every_field_says_where_and_how_the_command_shows_it(options):
    """A field without a panel or a line could not become an option of `featcache train`."""
    for field in dataclasses.fields(options):
        assert field.metadata["panel"], field.name
        assert field.metadata["help"].endswith((".", "…")), field.name


def test_kinds_of_options_are_the_kinds_of_heads():
    """Every kind that can be loaded can be trained, under the same name."""
    from featcache.heads import KINDS

    assert tuple(HEAD_OPTIONS) == KINDS
    assert all(options_of_kind(kind).kind == kind for kind in KINDS)
