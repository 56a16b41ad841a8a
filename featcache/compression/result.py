"""`CompressResult`: what a compression did to size, work, speed and accuracy, before and after the head's refit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class CompressResult:
    """What `prune` and `quantize` return.

    `parameters`, `macs` (multiply-accumulates per image), `bytes_after`, `latency_ms_after` (one image, ONNX Runtime,
    all processors) are those of the ONNX file the MODEL exports to; the others of the one it was made from.
    `compressed_bytes_before`, `compressed_bytes_after`: both files under zlib. `sparsity`: share of exact zeros among
    the weights, which save bytes in a compressed file alone. Accuracies are on the `n` images of `split`, the best one
    there is (test, val, else train): of the model before (`accuracy_float`), of its old head on the compressed backbone
    (`accuracy_before_refit`), of the refitted head, rounded as it ships (`accuracy_after_refit`). For a regression task
    they are R², for multi-label the mean average precision.
    `refit_kept`: whether the head that ships is the refitted one; where val says that it is worse than the old one, the
    old one ships, `accuracy_after_refit` is of that, and `notes` say why.
    `val_accuracy_float`, `val_accuracy_after_refit`: the same on val, to choose by; None without val.
    `feature_error`: of `quantize`, the mean squared error of the features on the calibration images, each over its
    variance, as calibrated. With a budget of that (`max_error`), `worst_layers`: of those whose integers alone cost
    most of it, the ``layer``, its ``error``, its ``macs_share`` and whether it computes in ``integers``;
    `float_layers`: those that stay in floats for it.
    `gained`, `lost`: images of `split` that only the compressed, only the float model gets right (classification).
    """

    model: str
    method: str
    amount: float | None
    parameters: int
    macs: int
    macs_before: int
    sparsity: float
    bytes_before: int
    bytes_after: int
    compressed_bytes_before: int
    compressed_bytes_after: int
    split: str
    n: int
    accuracy_float: float
    accuracy_before_refit: float
    accuracy_after_refit: float
    gained: int | None
    lost: int | None
    val_accuracy_float: float | None
    val_accuracy_after_refit: float | None
    latency_ms_before: float
    latency_ms_after: float
    integer_convolutions: int | None
    convolutions: int
    head_precision: str
    weights: str
    random_weights: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    refit_kept: bool = True
    notes: tuple[str, ...] = ()
    feature_error: float | None = None
    worst_layers: tuple[Mapping[str, Any], ...] = ()
    float_layers: tuple[str, ...] = ()

    @property
    def val_drop(self) -> float | None:
        """Accuracy on val that compression and refit cost, negative where they won some; None without val."""
        if self.val_accuracy_float is None or self.val_accuracy_after_refit is None:
            return None
        return self.val_accuracy_float - self.val_accuracy_after_refit

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("notes", "worst_layers", "float_layers")}
        return {**dataclasses.asdict(self), "settings": dict(self.settings), **lists}
