"""What training can be told, each setting stated once: its type, default, range, and the line that ``--help`` shows.

A kind of head has a class of its own, so that a setting which the kind would ignore cannot be given. The command line
makes its options from these fields; that is why nothing heavy is imported here before a value is checked.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from featcache.errors import InputError

if TYPE_CHECKING:
    from featcache.cache import FeatureCache
    from featcache.heads.base import Head

Penalty: TypeAlias = float | Literal["auto"]
Scales: TypeAlias = Sequence[float] | Literal["auto"]
CacheOrPath: TypeAlias = "FeatureCache | str | os.PathLike[str]"
HeadOrPath: TypeAlias = "Head | str | os.PathLike[str] | Mapping[str, Any]"
PenaltyName = Literal["l1", "l2", "group_l1"]
PENALTIES: tuple[PenaltyName, ...] = ("l1", "l2", "group_l1")
CLASS_WEIGHTS = ("balanced",)


def _shown(panel: str, line: str) -> dict[str, str]:
    """Return the metadata of a field: the panel of ``train --help`` it stands in, and its line there."""
    return {"panel": panel, "help": line}


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedOptions:
    """What the kinds that minimise a loss of targets share: `LinearOptions` and `MlpOptions`.

    Parameters
    ----------
    class_weight : str or None
        ``balanced`` weighs rows by n / (n_classes · n_of_the_class).
    label_smoothing : float
        Share in [0, 1) of every target that is spread over all classes.
    mixup : float
        Parameter of the Beta distribution that shares of feature-space mixup are drawn from; 0 for none.
    """

    class_weight: str | None = field(default=None, metadata=_shown("Targets", "balanced: every class counts the same."))
    label_smoothing: float = field(default=0.0, metadata=_shown("Targets", "In [0, 1)."))
    mixup: float = field(default=0.0, metadata=_shown("Targets", "Beta parameter of mixup of features; 0: none."))

    def check_supervision(self) -> None:
        """Raise `InputError` where one of the shared fields is not what it must be."""
        if self.class_weight not in (None, *CLASS_WEIGHTS):
            raise InputError(f"class_weight must be None or one of {CLASS_WEIGHTS!r}, got {self.class_weight!r}")
        _check_range("label_smoothing", self.label_smoothing, 0.0, 1.0, below=True)
        _check_range("mixup", self.mixup, 0.0, math.inf, below=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearOptions(SupervisedOptions):
    """A linear head, solved exactly: its penalties and how they are chosen.

    It minimises (1/Σwᵢ) Σ wᵢ·loss(yᵢ, W·zᵢ + b) + l1·‖W‖₁ + (l2/2)·‖W‖²_F + group_l1·Σ_j ‖W_:,j‖₂, where z are the
    features standardised by the train rows and b is not penalised; scikit-learn's C is 1/(n·l2) (for two classes, of
    which it fits the difference, 2/(n·l2)). The loss is softmax cross-entropy, for a multi-label set the sum of sigmoid
    cross-entropies, for regression half the squared error.

    Parameters
    ----------
    l1, l2, group_l1 : float, "auto" or None
        At least 0, or ``"auto"``: a warm-started path, of which the value with the best val score is taken (accuracy;
        mean average precision for multi-label; R² for regression) or, without a val split, the best mean over folds.
        None given: l2 is ``"auto"``. Any given: the others are 0.
    keep_features : float
        Below 1: group L1 chooses at most this share of the features (those of the weakest penalty of its path that uses
        no more), then l2 alone weighs them.
    standard_error_rule : bool
        Take the strongest penalty within one standard error of the best, in place of the best.
    block_scales : sequence of float, "auto" or None
        A factor for the standardised features of each output that stands side by side (larger: less penalised).
        ``"auto"``: (widest / width)^¼, half way between all features and all outputs counting alike.
    mixup_copies : int
        Mixes per row, where `mixup` is above 0.
    class_weight, label_smoothing, mixup
        See `SupervisedOptions`.

    Raises
    ------
    InputError
        For a value outside its range, and for settings that exclude each other.

    Examples
    --------
    >>> LinearOptions(l1=0.01).penalties
    {'l1': 0.01, 'l2': 0.0, 'group_l1': 0.0}
    >>> LinearOptions().penalties
    {'l1': 0.0, 'l2': 'auto', 'group_l1': 0.0}
    >>> LinearOptions(l2=-1)
    Traceback (most recent call last):
    featcache.errors.InputError: l2 must be 'auto' or a number of at least 0, got -1
    """

    kind: ClassVar[str] = "linear"

    l1: Penalty | None = field(
        default=None, metadata=_shown("Penalties", "A number or auto: drives weights to exactly zero.")
    )
    l2: Penalty | None = field(
        default=None, metadata=_shown("Penalties", "A number or auto; auto where no penalty is given.")
    )
    group_l1: Penalty | None = field(
        default=None, metadata=_shown("Penalties", "A number or auto: drops whole features.")
    )
    keep_features: float = field(
        default=1.0, metadata=_shown("Penalties", "Most features to keep, a share: group L1 chooses.")
    )
    standard_error_rule: bool = field(
        default=False, metadata=_shown("Penalties", "Strongest penalty within a standard error.")
    )
    block_scales: Scales | None = field(
        default=None,
        metadata=_shown("Data", "auto, or a number per output, by commas: larger is penalised less."),
    )
    mixup_copies: int = field(default=1, metadata=_shown("Targets", "Mixes per row."))

    def __post_init__(self) -> None:
        if self.block_scales is not None and not isinstance(self.block_scales, str):
            object.__setattr__(self, "block_scales", tuple(self.block_scales))
        self.check_supervision()
        self._check_penalties()
        _check_range("keep_features", self.keep_features, 0.0, 1.0, above=True)
        _check_integer("mixup_copies", self.mixup_copies, least=1)
        if isinstance(self.block_scales, tuple) and not all(0 < scale < math.inf for scale in self.block_scales):
            raise InputError(f"block_scales must be numbers above 0, got {self.block_scales!r}")
        if isinstance(self.block_scales, str) and self.block_scales != "auto":
            raise InputError(f"block_scales must be 'auto' or numbers above 0, got {self.block_scales!r}")
        if self.standard_error_rule and self.chosen_penalty is None:
            raise InputError(
                "standard_error_rule needs a penalty to choose, got none that is 'auto': give one of l1, l2, group_l1 "
                "the value 'auto'"
            )
        if self.keep_features != 1.0 and (self.penalties["l1"] != 0 or self.penalties["group_l1"] != 0):
            raise InputError(
                "keep_features goes with l2 alone, whose head is fitted on the features kept: leave out l1 and group_l1"
            )
        if self.keep_features != 1.0 and self.block_scales is not None:
            raise InputError("keep_features and block_scales cannot go together: leave one of them out")
        if self.mixup_copies != 1 and self.mixup == 0:
            raise InputError(f"mixup_copies needs mixup above 0, got {self.mixup_copies!r} copies of none: give mixup")

    def _check_penalties(self) -> None:
        penalties = self._closed_penalties()
        for name, value in penalties.items():
            if value != "auto" and not (_is_number(value) and 0 <= value < math.inf):
                raise InputError(f"{name} must be 'auto' or a number of at least 0, got {value!r}")
        if sum(value == "auto" for value in penalties.values()) > 1:
            raise InputError(f"at most one penalty may be 'auto', got {penalties!r}: give the others a number")
        if penalties["l1"] != 0 and penalties["group_l1"] != 0:
            raise InputError(f"l1 and group_l1 cannot both be above 0, got {penalties!r}")
        if all(value == 0 for value in penalties.values()):
            raise InputError(
                "one of l1, l2, group_l1 must be above 0 (without a penalty separable classes have no solution), got "
                "0 for all: leave them out to have l2 chosen"
            )

    @property
    def penalties(self) -> dict[str, Penalty]:
        """The three penalties with nothing left open: l2 is chosen where none is stated, else the unstated are 0."""
        closed = self._closed_penalties()
        return {name: "auto" if value == "auto" else float(value) for name, value in closed.items()}

    def _closed_penalties(self) -> dict[str, Penalty]:
        stated: dict[str, Penalty | None] = {"l1": self.l1, "l2": self.l2, "group_l1": self.group_l1}
        if all(value is None for value in stated.values()):
            stated["l2"] = "auto"
        return {name: 0.0 if value is None else value for name, value in stated.items()}

    @property
    def chosen_penalty(self) -> PenaltyName | None:
        """The penalty whose value is to be chosen, or None."""
        return next((name for name in PENALTIES if self.penalties[name] == "auto"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpOptions(SupervisedOptions):
    """A multi-layer perceptron, trained by AdamW; the epoch that does best on val is kept. Needs torch.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the hidden layers, each at least 1.
    dropout : float
        Share in [0, 1) of the hidden values that is dropped.
    learning_rate, weight_decay : float
        Of AdamW; the rate is the peak of one cosine cycle.
    epochs : int
        At most so many; training ends early where val gets no better.
    class_weight, label_smoothing, mixup
        See `SupervisedOptions`.

    Raises
    ------
    InputError
        For a value outside its range.

    Examples
    --------
    >>> MlpOptions(hidden=[64, 32]).hidden
    (64, 32)
    """

    kind: ClassVar[str] = "mlp"

    hidden: Sequence[int] = field(
        default=(512,), metadata=_shown("Kind", "MLP: widths of hidden layers, comma-separated.")
    )
    dropout: float = field(default=0.2, metadata=_shown("Kind", "MLP: share of hidden values dropped."))
    learning_rate: float = field(default=1e-3, metadata=_shown("Kind", "MLP: peak rate of AdamW."))
    weight_decay: float = field(default=1e-2, metadata=_shown("Kind", "MLP: weight decay of AdamW."))
    epochs: int = field(default=100, metadata=_shown("Kind", "MLP: at most; ends early where val gets no better."))

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        self.check_supervision()
        if not self.hidden or not all(_is_integer(width) and width >= 1 for width in self.hidden):
            raise InputError(f"hidden must be one or more layer widths of at least 1, got {self.hidden!r}")
        _check_range("dropout", self.dropout, 0.0, 1.0, below=True)
        _check_range("learning_rate", self.learning_rate, 0.0, math.inf, above=True, below=True)
        _check_range("weight_decay", self.weight_decay, 0.0, math.inf, below=True)
        _check_integer("epochs", self.epochs, least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityOptions:
    """What the kinds that compare images share: `PrototypeOptions` and `KnnOptions`.

    Parameters
    ----------
    sharpness : float or None
        What similarities are multiplied by, above 0; None: the value under which held-out labels are likeliest.
    """

    sharpness: float | None = field(
        default=None, metadata=_shown("Kind", "Prototype, kNN: of the logits; default: by val.")
    )

    def check_sharpness(self) -> None:
        """Raise `InputError` where the sharpness is not above 0."""
        if self.sharpness is not None:
            _check_range("sharpness", self.sharpness, 0.0, math.inf, above=True, below=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrototypeOptions(SimilarityOptions):
    """One mean per class; an image belongs to the nearest. The head of choice for a few images a class.

    Parameters
    ----------
    metric : str or None
        ``cosine`` or ``euclidean``; None: chosen on val.
    sharpness
        See `SimilarityOptions`.

    Raises
    ------
    InputError
        For another metric, or a sharpness that is not above 0.

    Examples
    --------
    >>> PrototypeOptions(metric="cosine").kind
    'prototype'
    """

    kind: ClassVar[str] = "prototype"

    metric: str | None = field(
        default=None, metadata=_shown("Kind", "Prototype: cosine or euclidean; default: chosen on val.")
    )

    def __post_init__(self) -> None:
        self.check_sharpness()
        if self.metric is not None:
            from featcache.heads.prototype import METRICS

            if self.metric not in METRICS:
                raise InputError(f"metric must be one of {METRICS!r}, got {self.metric!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnOptions(SimilarityOptions):
    """The nearest training images vote. For looking at a cache: it keeps every row and cannot be exported.

    Parameters
    ----------
    neighbors : int or None
        How many vote; None: chosen on val.
    sharpness
        See `SimilarityOptions`.

    Raises
    ------
    InputError
        For fewer than one neighbour, or a sharpness that is not above 0.

    Examples
    --------
    >>> KnnOptions(neighbors=0)
    Traceback (most recent call last):
    featcache.errors.InputError: neighbors must be a whole number of at least 1, got 0
    """

    kind: ClassVar[str] = "knn"

    neighbors: int | None = field(default=None, metadata=_shown("Kind", "kNN: how many; default: chosen on val."))

    def __post_init__(self) -> None:
        self.check_sharpness()
        if self.neighbors is not None:
            _check_integer("neighbors", self.neighbors, least=1)


HeadOptions: TypeAlias = LinearOptions | MlpOptions | PrototypeOptions | KnnOptions
HEAD_OPTIONS: dict[str, type[HeadOptions]] = {
    options.kind: options for options in (LinearOptions, MlpOptions, PrototypeOptions, KnnOptions)
}


def options_of_kind(kind: str) -> type[HeadOptions]:
    """Return the options of heads of `kind`; raises `InputError` for a name that is no kind."""
    if kind not in HEAD_OPTIONS:
        raise InputError(f"kind must be one of {tuple(HEAD_OPTIONS)!r}, got {kind!r}")
    return HEAD_OPTIONS[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What goes for every kind of head: the rows, how they are held out, and what follows the fit.

    Parameters
    ----------
    outputs : sequence of str or None
        Stored outputs laid side by side; None: the first.
    views : sequence of int
        The stored views that become training rows; val and test see the plain view 0 only.
    drop_duplicates : bool
        Leave out training images that also stand in val or test or under another label.
    folds : int
        Stratified folds of the train images to choose by where there is no val split, at least 2.
    calibrate : bool
        Divide the temperature under which val is likeliest into the logits.
    unknown : str or None
        Attach a rule for images of no known class, by ``max_probability``, ``max_logit``, ``energy`` or ``margin`` of
        the logits; ``auto`` takes the one that tells left-out classes best.
    unknown_accept : float
        Share in (0, 1] of the val images that the rule accepts.
    seed : int
        Draws folds, mixes and the MLP; the same seed gives the same bits on one machine.

    Raises
    ------
    InputError
        For a value outside its range, an output or view named twice, and `unknown_accept` without a rule.

    Examples
    --------
    >>> TrainOptions(views=[0, 1]).views
    (0, 1)
    """

    outputs: Sequence[str] | None = field(
        default=None, metadata=_shown("Data", "Stored outputs, by commas, side by side.")
    )
    views: Sequence[int] = field(default=(0,), metadata=_shown("Data", "Stored views to train on, comma-separated."))
    drop_duplicates: bool = field(
        default=False, metadata=_shown("Data", "Drop train images that also stand elsewhere.")
    )
    folds: int = field(default=5, metadata=_shown("Fit", "Folds to choose by where there is no val split."))
    calibrate: bool = field(default=False, metadata=_shown("After the fit", "Scale the logits by the val temperature."))
    unknown: str | None = field(
        default=None, metadata=_shown("After the fit", "Attach a rule for unknown images: auto, …")
    )
    unknown_accept: float = field(
        default=0.95, metadata=_shown("After the fit", "Share of val that the rule accepts, in (0, 1].")
    )
    seed: int = field(default=0, metadata=_shown("Fit", "The same seed gives the same bits on one machine."))

    def __post_init__(self) -> None:
        if self.outputs is not None:
            object.__setattr__(
                self, "outputs", (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs)
            )
        object.__setattr__(self, "views", tuple(self.views))
        _check_range("unknown_accept", self.unknown_accept, 0.0, 1.0, above=True)
        _check_integer("folds", self.folds, least=2)
        _check_integer("seed", self.seed, least=0)
        if self.unknown is not None:
            from featcache.heads.unknown import SCORES

            if self.unknown not in ("auto", *SCORES):
                raise InputError(f"unknown must be None, 'auto' or one of {SCORES!r}, got {self.unknown!r}")
        elif self.unknown_accept != 0.95:
            raise InputError(f"unknown_accept needs a rule, got {self.unknown_accept!r} of none: give unknown")
        if not self.views or not all(_is_integer(view) and view >= 0 for view in self.views):
            raise InputError(f"views must be one or more view numbers, got {self.views!r}")
        if self.outputs is not None and not self.outputs:
            raise InputError("outputs must name one or more stored outputs, got none: leave it out to have the first")
        for name, values in (("views", self.views), ("outputs", self.outputs or ())):
            if len(set(values)) < len(values):
                raise InputError(f"{name} must not name one twice, got {values!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationOptions:
    """A teacher whose answers a linear head or an MLP learns beside the labels (Hinton et al. 2015).

    The loss is (1 − alpha)·CE(y, p) + alpha·T²·KL(teacher_T ‖ student_T) with T = `temperature`. Unlabelled images take
    part through the second term.

    Parameters
    ----------
    teacher : FeatureCache or path
        Another cache of the same images, joined by the digest of their bytes.
    teacher_head : Head, path, mapping or None
        The head trained on it, its directory, or the ``settings`` of a head to train there. None: the teacher's stored
        ``logits`` serve where they fit the classes, else a linear head is trained on the teacher first.
    alpha : float
        Share in [0, 1] of the teacher's term.
    temperature : float
        What the logits of teacher and student are divided by, above 0.
    unlabelled : str or None
        A data set of the same cache whose images are learned from without labels; None: the unlabelled images of the
        train split.

    Raises
    ------
    InputError
        For a value outside its range.

    Examples
    --------
    >>> DistillationOptions(teacher="cache", teacher_head="head", temperature=4.0).alpha
    0.5
    >>> DistillationOptions(teacher="cache", alpha=2)
    Traceback (most recent call last):
    featcache.errors.InputError: alpha must be at least 0 and at most 1, got 2
    """

    teacher: CacheOrPath = field(metadata=_shown("Distillation", "Distil from this cache of the same images."))
    teacher_head: HeadOrPath | None = field(
        default=None, metadata=_shown("Distillation", "The head trained on the teacher's cache.")
    )
    alpha: float = field(default=0.5, metadata=_shown("Distillation", "Share of the teacher's term, in [0, 1]."))
    temperature: float = field(default=2.0, metadata=_shown("Distillation", "Softens teacher and student alike."))
    unlabelled: str | None = field(
        default=None, metadata=_shown("Distillation", "Data set of unlabelled images to distil on.")
    )

    def __post_init__(self) -> None:
        _check_range("alpha", self.alpha, 0.0, 1.0)
        _check_range("temperature", self.temperature, 0.0, math.inf, above=True, below=True)


def _is_integer(value: object) -> bool:
    """Return whether `value` is a whole number; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_integer(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_range(
    name: str, value: float, least: float, most: float, *, above: bool = False, below: bool = False
) -> None:
    if not _is_number(value) or math.isnan(value):
        raise InputError(f"{name} must be a number, got {value!r}")
    if value < least or value > most or (above and value == least) or (below and value == most):
        low = f"above {least:g}" if above else f"at least {least:g}"
        high = "" if math.isinf(most) else f" and {'below' if below else 'at most'} {most:g}"
        raise InputError(f"{name} must be {low}{high}, got {value!r}")
