"""What a fit was asked for: `TrainSettings`, checked once at the border."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from featcache.errors import InputError
from featcache.heads.kinds import KINDS
from featcache.heads.unknown import SCORES

Penalty = float | Literal["auto"]
PenaltyName = Literal["l1", "l2", "group_l1"]
PENALTIES: tuple[PenaltyName, ...] = ("l1", "l2", "group_l1")
CLASS_WEIGHTS = ("balanced",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The keyword arguments of ``train_head``, resolved: no penalty is None. See ``train_head`` for their meaning."""

    dataset: str | None = None
    kind: str = "linear"
    l1: Penalty | None = None
    l2: Penalty | None = None
    group_l1: Penalty | None = None
    keep_features: float = 1.0
    outputs: tuple[str, ...] | None = None
    block_scales: tuple[float, ...] | Literal["auto"] | None = None
    views: tuple[int, ...] = (0,)
    class_weight: str | None = None
    drop_duplicates: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    mixup_copies: int = 1
    standard_error_rule: bool = False
    folds: int = 5
    calibrate: bool = False
    unknown: str | None = None
    unknown_accept: float = 0.95
    teacher: str | None = None
    teacher_head: str | Mapping[str, Any] | None = None
    alpha: float = 0.5
    temperature: float = 2.0
    unlabelled: str | None = None
    metric: str | None = None
    neighbors: int | None = None
    sharpness: float | None = None
    hidden: tuple[int, ...] = (512,)
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    epochs: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {KINDS!r}, got {self.kind!r}")
        self._resolve_penalties()
        self._refuse_combinations()
        _in_range("label_smoothing", self.label_smoothing, 0.0, 1.0, below=True)
        _in_range("keep_features", self.keep_features, 0.0, 1.0, above=True)
        _in_range("alpha", self.alpha, 0.0, 1.0)
        _in_range("unknown_accept", self.unknown_accept, 0.0, 1.0, above=True)
        _in_range("dropout", self.dropout, 0.0, 1.0, below=True)
        _in_range("mixup", self.mixup, 0.0, math.inf, below=True)
        _in_range("weight_decay", self.weight_decay, 0.0, math.inf, below=True)
        for name in ("temperature", "learning_rate"):
            _in_range(name, getattr(self, name), 0.0, math.inf, above=True, below=True)
        if self.sharpness is not None:
            _in_range("sharpness", self.sharpness, 0.0, math.inf, above=True, below=True)
        for name, least in (("folds", 2), ("mixup_copies", 1), ("epochs", 1), ("seed", 0)):
            if not _is_integer(getattr(self, name)) or getattr(self, name) < least:
                raise InputError(f"{name} must be a whole number of at least {least}, got {getattr(self, name)!r}")
        if self.class_weight not in (None, *CLASS_WEIGHTS):
            raise InputError(f"class_weight must be None or one of {CLASS_WEIGHTS!r}, got {self.class_weight!r}")
        if self.unknown not in (None, "auto", *SCORES):
            raise InputError(f"unknown must be None, 'auto' or one of {SCORES!r}, got {self.unknown!r}")
        if not self.views or not all(_is_integer(view) and view >= 0 for view in self.views):
            raise InputError(f"views must be one or more view numbers, got {self.views!r}")
        if self.outputs is not None and not self.outputs:
            raise InputError("outputs must name one or more stored outputs, got none: leave it out to have the first")
        for name, given in (("views", self.views), ("outputs", self.outputs or ())):
            if len(set(given)) < len(given):
                raise InputError(f"{name} must not name one twice, got {given!r}")
        if not self.hidden or not all(_is_integer(width) and width >= 1 for width in self.hidden):
            raise InputError(f"hidden must be one or more layer widths of at least 1, got {self.hidden!r}")
        if isinstance(self.block_scales, tuple) and not all(0 < s < math.inf for s in self.block_scales):
            raise InputError(f"block_scales must be numbers above 0, got {self.block_scales!r}")
        if isinstance(self.block_scales, str) and self.block_scales != "auto":
            raise InputError(f"block_scales must be 'auto' or numbers above 0, got {self.block_scales!r}")

    def _refuse_combinations(self) -> None:
        """Raise `InputError` for settings that the kind of head would have to ignore."""
        if self.standard_error_rule and self.auto is None:
            raise InputError(
                "standard_error_rule needs a penalty to choose, got kind "
                f"{self.kind!r} with none 'auto': give one of l1, l2, group_l1 the value 'auto'"
            )
        for name, wanted in (("label_smoothing", 0.0), ("mixup", 0.0), ("class_weight", None), ("teacher", None)):
            if self.kind in ("prototype", "knn") and getattr(self, name) != wanted:
                raise InputError(f"{name} needs kind 'linear' or 'mlp', got kind {self.kind!r}")
        if self.keep_features != 1.0 and self.kind != "linear":
            raise InputError(f"keep_features needs kind 'linear', got kind {self.kind!r}")
        if self.keep_features != 1.0 and (self.l1 != 0 or self.group_l1 != 0):
            raise InputError(
                "keep_features goes with l2 alone, whose head is fitted on the features kept: leave out l1 and group_l1"
            )
        if self.keep_features != 1.0 and self.block_scales is not None:
            raise InputError("keep_features and block_scales cannot go together: leave one of them out")
        if self.kind != "linear" and self.block_scales is not None:
            raise InputError(f"block_scales needs kind 'linear', got kind {self.kind!r}")
        for name, kinds in (("metric", ("prototype",)), ("sharpness", ("prototype", "knn")), ("neighbors", ("knn",))):
            if self.kind not in kinds and getattr(self, name) is not None:
                raise InputError(f"{name} needs kind {' or '.join(map(repr, kinds))}, got kind {self.kind!r}")
        if self.teacher is None and (self.teacher_head is not None or self.unlabelled is not None):
            given = "teacher_head" if self.teacher_head is not None else "unlabelled"
            raise InputError(f"{given} needs a teacher, got none: name the cache it belongs to")
        if self.teacher is not None and self.label_smoothing > 0:
            raise InputError("label_smoothing and a teacher cannot go together: the teacher's targets are soft already")
        if self.teacher is not None and self.mixup > 0 and self.kind == "linear":
            raise InputError("mixup and a teacher cannot go together in a linear head: use kind 'mlp'")

    def _resolve_penalties(self) -> None:
        given = {name: getattr(self, name) for name in PENALTIES}
        if self.kind != "linear":
            named = [name for name, value in given.items() if value is not None]
            if named:
                raise InputError(f"{named[0]} needs kind 'linear', got kind {self.kind!r}")
            return
        if all(value is None for value in given.values()):
            given["l2"] = "auto"
        resolved = {name: 0.0 if value is None else value for name, value in given.items()}
        for name, value in resolved.items():
            if value != "auto" and not (_is_number(value) and 0 <= value < math.inf):
                raise InputError(f"{name} must be 'auto' or a number of at least 0, got {value!r}")
        if sum(value == "auto" for value in resolved.values()) > 1:
            raise InputError(f"at most one penalty may be 'auto', got {resolved!r}: give the others a number")
        if resolved["l1"] != 0 and resolved["group_l1"] != 0:
            raise InputError(f"l1 and group_l1 cannot both be above 0, got {resolved!r}")
        if all(value == 0 for value in resolved.values()):
            raise InputError(
                "one of l1, l2, group_l1 must be above 0 (without a penalty separable classes have no solution), got "
                "0 for all: leave them out to have l2 chosen"
            )
        for name, value in resolved.items():
            object.__setattr__(self, name, value if value == "auto" else float(value))

    @property
    def auto(self) -> PenaltyName | None:
        """The penalty whose value is to be chosen, or None."""
        chosen = [name for name in PENALTIES if getattr(self, name) == "auto"]
        return chosen[0] if chosen else None

    def to_json(self) -> dict[str, Any]:
        """Return the keyword arguments that differ from ``train_head``'s defaults, as JSON values, but for `dataset`.

        They say how a head is made; of which data set is for the caller to say, who may have it in another cache.
        """
        values = {}
        for field in dataclasses.fields(self):
            if field.name == "dataset":
                continue
            value = getattr(self, field.name)
            if value != field.default:
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values


def _is_integer(value: object) -> bool:
    """Return whether `value` is a whole number; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _in_range(name: str, value: float, least: float, most: float, *, above: bool = False, below: bool = False) -> None:
    if not _is_number(value) or math.isnan(value):
        raise InputError(f"{name} must be a number, got {value!r}")
    if value < least or value > most or (above and value == least) or (below and value == most):
        low = f"above {least:g}" if above else f"at least {least:g}"
        high = "" if math.isinf(most) else f" and {'below' if below else 'at most'} {most:g}"
        raise InputError(f"{name} must be {low}{high}, got {value!r}")
