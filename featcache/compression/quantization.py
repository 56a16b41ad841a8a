"""`quantize`: 8-bit integers for weights and activations, calibrated or trained, then the head's refit."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from featcache.cache import FeatureCache, borrow_cache
from featcache.compression.choosing import FLOAT_SHARE, fewest_floats, integer_nodes, nodes_without
from featcache.compression.folded import FoldedModel, fold_model, with_integers
from featcache.compression.layerwise import Calibrated, calibrate
from featcache.compression.products import integer_products, looked_up_tables
from featcache.compression.qat import train_quantized, training_settings
from featcache.compression.ranges import POWERS
from featcache.compression.recovering import finish_step, work_of
from featcache.compression.recovery import Minutes, RecoverySettings
from featcache.compression.refitting import (
    Features,
    Source,
    compare_accuracy,
    extract_and_refit,
    float_features,
    open_source,
)
from featcache.compression.result import CompressResult
from featcache.compression.rounding import FULL_LIMIT, LIMIT, MomentsSum, channel_scales, round_jointly
from featcache.compression.sensitivity import LayerError, layer_errors
from featcache.compression.shipping import Shipping, ship
from featcache.errors import InputError, MissingError
from featcache.extract.inputs import find_input
from featcache.graph.cost import node_macs
from featcache.heads import Head, LinearHead
from featcache.model.halves import in_halves
from featcache.model.kinds import model_kind
from featcache.model.merged import MergedModel, changed_recipe
from featcache.model.quantization import Quantization, along_axis
from featcache.system.files import refuse_existing
from featcache.system.sources.batches import first_prepared, stacked_by_shape

HeadPrecision = Literal["int8", "float"]
QuantizeMethod = Literal["ptq", "qat"]
Precision = Literal["int8", "int8-dynamic", "fp16"]
ProcessorKind = Literal["any", "vnni", "arm"]

CALIBRATION_IMAGES = 64
_MOST_SMALL = 4  # times as many, of small images
_HEAD_WEIGHT = "head.weight"
MOST_MOVED = 0.05  # of the logits' spread that rounding a head may cost without a word
WORST_LAYERS = 8  # named in the result
_MOMENT_ROWS = 4096  # of features multiplied at a time


def quantize(
    model: MergedModel | str | os.PathLike[str],
    *,
    cache: FeatureCache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    precision: Precision = "int8",
    method: QuantizeMethod = "ptq",
    recover: Minutes | Literal["off"] | None = None,
    head_precision: HeadPrecision = "int8",
    processor: ProcessorKind = "any",
    dataset: str | None = None,
    images: str | os.PathLike[str] | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    float_share: float = FLOAT_SHARE,
    max_error: float | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> CompressResult:
    """Write a model in fewer bits and return its size, speed and accuracy, before and after.

    Of ``int8``, the default: batch norms are folded; then a walk over the graph rounds each layer's weights (per output
    channel) for the inputs it will really get, takes back the usual error with its bias, and chooses the range of its
    8-bit output; of two such walks, which choose ranges differently, the one counts whose features the head answers for
    most nearly as for the float ones. ``qat`` then trains with the rounding inside, scales included, toward the cached
    float features; killed, the same call goes on from ``OUT.work``. Then the backbone is final, and the head is fitted
    again on its features; a refit that val says is worse is not kept.

    Parameters
    ----------
    model
        A MODEL directory, or the model itself; not quantized yet.
    cache
        The one that its head was trained on, with its images, or texts, where they were.
    out
        The MODEL directory to write.
    precision
        ``int8``: weights and values on the way are integers with stored scales. ``int8-dynamic``: of a transformer, the
        weights that rows are multiplied with; the rows are rounded at run time, nothing is calibrated. ``fp16``:
        weights are stored in half precision and computed with in floats; the head is the old one.
    method
        Of ``int8``. ``ptq``: calibrated, no training. ``qat``, of images: trained from there, which val can refuse:
        then it is as ``ptq``.
    recover
        How long ``qat`` trains: minutes, or ``auto`` (the default) for what the data are worth. ``ptq`` takes ``off``.
    head_precision
        ``int8``: a linear head's weights are rounded per class; ``float``: they are not.
    processor
        What the file is for. ``any``: weights are integers of -64 to 64, whose sums are exact on every processor, so
        that one file answers alike everywhere. ``vnni``, ``arm``: of -127 to 127, for processors that add products in
        32 bits (x86 with VNNI or AMX, ARM); on an x86 processor without VNNI their sums saturate, and the file answers
        otherwise there.
    dataset
        Which one of the cache, where it has several.
    images
        Where the images of the cache lie by now, if no longer where they were built from.
    calibration_images
        How many training images of 224 pixels, or texts of 64 tokens, the walk sees; as many pixels or tokens of
        smaller or larger ones, up to four times as many of them.
    float_share
        The first convolutions, up to this share of the multiplications, stay in floats: they read pixels, have few
        channels, and their error reaches everything.
    max_error
        Instead of the first convolutions, as few as do of those layers whose integers alone cost the features most stay
        in floats, so that the features' mean squared error on the calibration images, each over its variance, is at
        most this.
    overwrite
        Replace what is at `out`.
    say
        Called with a line now and then while the network is trained.

    Returns
    -------
    CompressResult
        Size, work, speed and accuracy before and after, and after the refit.

    Raises
    ------
    InputError
        Where model and cache do not belong together, the model is quantized already, or a setting is out of range.
    MissingError
        Where the images are gone.
    ExistsError
        Where `out` exists and `overwrite` is false.

    Examples
    --------
    >>> from featcache import quantize
    >>> result = quantize("model", cache="cache", out="int8", calibration_images=4)
    >>> result.bytes_after < 0.4 * result.bytes_before, result.head_precision
    (True, 'int8')
    """
    if head_precision not in ("int8", "float"):
        raise InputError(f"head_precision must be 'int8' or 'float', got {head_precision!r}")
    if processor not in get_args(ProcessorKind):
        raise InputError(f"processor must be 'any', 'vnni' or 'arm', got {processor!r}")
    if precision not in get_args(Precision):
        raise InputError(f"--precision must be 'int8', 'int8-dynamic' or 'fp16', got {precision!r}")
    if method not in ("ptq", "qat"):
        raise InputError(f"--method must be 'ptq' or 'qat', got {method!r}")
    _refuse_together(precision, method=method, max_error=max_error, processor=processor)
    if calibration_images < 1 or not 0 <= float_share <= 1:
        raise InputError(
            "calibration_images must be at least 1 and float_share from 0 to 1, got "
            f"{calibration_images!r} and {float_share!r}"
        )
    training = _training(method, recover)
    if max_error is not None and not 0 < max_error < math.inf:
        raise InputError(f"--max-error must be above 0, a share of the features' variance, got {max_error!r}")
    refuse_existing(Path(out), overwrite=overwrite)
    with borrow_cache(cache, images=images, dataset=dataset) as opened:
        source = open_source(model, opened, dataset=dataset)
        if method == "qat" and not model_kind(source.model.recipe.input).can_be_trained:
            raise InputError(
                f"--method must be 'ptq' for a model of {source.model.input.noun}s, got 'qat': training needs a "
                "backbone of images"
            )
        before = float_features(source)
        if precision != "int8":
            with tempfile.TemporaryDirectory() as folder:
                make = _in_halves if precision == "fp16" else _with_integer_products
                return make(source, before, Shipping(Path(folder), out, head_precision, processor, overwrite))
        inputs = calibration_inputs(source, calibration_images)
        folded = fold_model(source.model)
        found, errors = _calibrated_within(folded, inputs, float_share, processor, max_error)
        calibrated_error = found.error
        settings: dict[str, Any] = {
            "method": method, "calibration_images": sum(map(len, inputs)), "processor": processor,
            **({"float_share": float_share} if max_error is None else {"max_error": max_error}),
        }  # fmt: skip
        notes: tuple[str, ...] = ()
        if training is not None:
            found, recovery = train_quantized(
                folded, found, source, training, limit=weight_limit(processor), work=work_of(Path(out)), say=say
            )
            settings["training"] = recovery.to_lineage(training)
            if not recovery.kept:
                notes = ("val says that training made the integers no better: they are as calibrated",)
        compressed = with_integers(folded, found)
        with tempfile.TemporaryDirectory() as folder:
            result = _finish(
                source, before, compressed, Shipping(Path(folder), out, head_precision, processor, overwrite),
                settings=settings, notes=notes, feature_error=calibrated_error,
                worst_layers=tuple(entry.to_json() for entry in errors[:WORST_LAYERS]),
                float_layers=tuple(entry.layer for entry in errors if not entry.integers),
            )  # fmt: skip
        if training is not None:
            finish_step(Path(out))
        return result


def _refuse_together(
    precision: Precision, *, method: QuantizeMethod, max_error: float | None, processor: ProcessorKind
) -> None:
    """Raise `InputError` for options that say nothing about such a model."""
    for option, given, why in (
        ("--method", method != "ptq", "there are no stored scales to train"),
        ("--max-error", max_error is not None, "there are no layers to choose from"),
    ):
        if given and precision != "int8":
            raise InputError(f"{option} must be left out with --precision {precision}: {why}; --precision int8 has it")
    if precision == "fp16" and processor != "any":
        raise InputError(
            f"--processor must be 'any' with --precision fp16, got {processor!r}: floats are the same on all"
        )


def _in_halves(source: Source, before: Features, shipping: Shipping) -> CompressResult:
    """Write the model with weights in half precision and its old head, and measure it."""
    halved = in_halves(fold_model(source.model).model, head=shipping.head_precision != "float")
    after = float_features(dataclasses.replace(source, model=halved))
    head = dataclasses.replace(halved.fitted_head, fingerprint=halved.recipe.fingerprint)
    comparison = compare_accuracy(source.model.fitted_head, head, before=before, after=after)
    used = "fp16" if shipping.head_precision != "float" and isinstance(head, LinearHead) else "float"
    step = {
        "verb": "quantize", "precision": "fp16", "head_precision": used, "refit_kept": False,
        "accuracy": dataclasses.asdict(comparison),
    }  # fmt: skip
    final = type(halved)(
        halved.backbone, head, recipe=halved.recipe, surgery=halved.surgery, halves=True,
        lineage=[*source.model.lineage, step],
    )  # fmt: skip
    return ship(
        source,
        final,
        shipping,
        comparison,
        precision="fp16",
        head_precision=used,
        settings={},
        refit_kept=False,
        notes=(),
    )


def _with_integer_products(source: Source, before: Features, shipping: Shipping) -> CompressResult:
    """Write the model with integer weights for rows that are rounded at run time, its head refitted, and measure it."""
    folded = fold_model(source.model)
    compressed = folded.model.copy(quantization=integer_products(folded.graph, limit=weight_limit(shipping.processor)))
    return _finish(
        source, before, compressed, shipping, settings={"processor": shipping.processor}, notes=(),
        precision="int8-dynamic",
    )  # fmt: skip


def _training(method: QuantizeMethod, recover: Minutes | Literal["off"] | None) -> RecoverySettings | None:
    """Return how the network is trained, None for not at all; `InputError` where that does not go with the method."""
    if method == "ptq":
        if recover not in (None, "off"):
            raise InputError(f"--recover must be 'off' with --method ptq, got {recover!r}: --method qat trains")
        return None
    if recover == "off":
        raise InputError(
            "--recover must be 'auto' or minutes with --method qat, got 'off': --method ptq trains nothing"
        )
    return training_settings("auto" if recover is None else recover)


def _finish(
    source: Source,
    before: Features,
    compressed: MergedModel,
    shipping: Shipping,
    *,
    settings: Mapping[str, Any],
    notes: tuple[str, ...],
    precision: Precision = "int8",
    **found: Any,
) -> CompressResult:
    """Fit the head on the features of the `compressed` backbone, write the model, measure it.

    `found`: fields of the result that tell what the integers cost.
    """
    from featcache.graph.write import write_onnx

    integer_graph = write_onnx(compressed, shipping.folder / "features.onnx", outputs=("features",))
    deployed = compressed.input
    changes = {"outputs": ("features",), **deployed.recipe_changes}
    extractor = find_input(compressed.recipe.input).extractor_of_graph(
        integer_graph, changed_recipe(compressed, **changes), deployed
    )
    recipe = extractor.recipe
    with extractor.engine:
        refit = extract_and_refit(source, extractor)
    after, head, remarks = refit.features, refit.head, [*notes, *refit.notes]
    quantization = compressed.quantization
    assert quantization is not None
    used_precision = "float"
    if shipping.head_precision == "int8" and isinstance(head, LinearHead):
        exact = head
        head, quantization = integer_head(exact, quantization, after)
        moved = _moved(exact, head, after)
        if moved > MOST_MOVED:
            remarks.append(
                f"rounding the head's weights moved its answers by {moved:.0%} of their spread; --head-precision float "
                "keeps them"
            )
        used_precision = "int8"
    comparison = compare_accuracy(source.model.fitted_head, head, before=before, after=after)
    step = {
        "verb": "quantize",
        "precision": precision,
        **settings,
        "head_precision": used_precision,
        "refit_kept": refit.kept,
        "accuracy": dataclasses.asdict(comparison),
    }
    final = type(compressed)(
        compressed.backbone, head, recipe=recipe, surgery=compressed.surgery, quantization=quantization,
        lineage=[*source.model.lineage, step],
    )  # fmt: skip
    return ship(
        source, final, shipping, comparison, precision=precision, head_precision=used_precision, settings=settings,
        refit_kept=refit.kept, notes=remarks, **found,
    )  # fmt: skip


def quantized_model(
    model: MergedModel,
    inputs: Sequence[npt.NDArray[Any]],
    *,
    float_share: float = FLOAT_SHARE,
    processor: ProcessorKind = "any",
) -> MergedModel:
    """Return `model` with its backbone's stored scales, rounded weights and corrected biases; the head is the old one.

    `inputs`: training inputs, a batch of each shape. `float_share`: of the multiplications, left in floats.
    `processor`: as of `quantize`.
    """
    folded = fold_model(model)
    return with_integers(folded, _calibrated(folded, inputs, float_share, processor))


def _calibrated(
    folded: FoldedModel, inputs: Sequence[npt.NDArray[Any]], float_share: float, processor: ProcessorKind
) -> Calibrated:
    walks = _walks(folded, inputs, integer_nodes(folded.graph, float_share=float_share), processor)
    return min(walks, key=lambda walk: walk.answers_error)


def _walks(
    folded: FoldedModel, inputs: Sequence[npt.NDArray[Any]], nodes: Sequence[str], processor: ProcessorKind
) -> list[Calibrated]:
    """Return the integers by each power of the errors that ranges minimise: which is best differs between networks."""
    return [
        calibrate(
            folded.graph,
            inputs,
            nodes=nodes,
            adjustable=folded.adjustable,
            tables=looked_up_tables(folded.graph),
            limit=weight_limit(processor),
            power=power,
            answers=folded.model.fitted_head.predict_logits,
        )
        for power in POWERS
    ]


def _calibrated_within(
    folded: FoldedModel,
    inputs: Sequence[npt.NDArray[Any]],
    float_share: float,
    processor: ProcessorKind,
    max_error: float | None,
) -> tuple[Calibrated, tuple[LayerError, ...]]:
    """Return the integers; with a budget also what each layer's alone cost, the worst first."""
    if max_error is None:
        return _calibrated(folded, inputs, float_share, processor), ()

    def walk(floats: Collection[str]) -> Calibrated:
        walks = _walks(folded, inputs, nodes_without(folded.graph, floats), processor)
        return min(walks, key=lambda walk: walk.error)  # the budget is one of the features

    errors = layer_errors(folded.graph, inputs, walk(()))
    found = fewest_floats(
        walk, {entry.layer: entry.error for entry in errors}, node_macs(folded.graph), max_error=max_error
    )
    integers = set(found.quantization.nodes)
    return found, tuple(dataclasses.replace(entry, integers=entry.layer in integers) for entry in errors)


def weight_limit(processor: str) -> int:
    """Return the largest integer of a weight for `processor`."""
    return LIMIT if processor == "any" else FULL_LIMIT


def calibration_inputs(source: Source, count: int) -> list[npt.NDArray[Any]]:
    """Return training inputs as the network takes them, a batch of each shape, drawn by digest: the same every time.

    As many as `count` of a usual size are worth, up to four times that: small ones say little each, and of large ones
    all are held at once, layer by layer. Nothing is put behind any of them to make them alike.

    Raises `MissingError` where none can be read any more.
    """
    samples = source.cache.samples(source.dataset)
    samples.require_images()
    chosen = source.cache.select(split="train", dataset=source.dataset, labelled=False).indices
    drawn = [index for _, index in sorted((samples.digests[index].tobytes(), int(index)) for index in chosen)]
    # the refit, which needs every input, says which ones are gone or have changed
    deployed = source.model.input
    found = first_prepared(
        samples.sources(drawn), deployed.prepare, most=_MOST_SMALL * count, values=count * deployed.usual_size
    )
    if not found:
        raise MissingError(
            f"training {deployed.noun}s must be read from {samples.root!r} to calibrate, none is there unchanged any "
            "more"
        )
    return stacked_by_shape(found)


def integer_head(head: LinearHead, quantization: Quantization, features: Features) -> tuple[LinearHead, Quantization]:
    """Return `head` with each class's weights on their 8-bit grid, and `quantization` with their scales.

    Rounded for the training features, like a layer of the backbone for its inputs, and with a bias that takes back
    what is left of their mean: features are not centred, and where their mean outweighs their spread (random weights
    do that) rounding to nearest would decide every answer.
    """
    weight = torch.from_numpy(head.weight)
    scales = channel_scales(weight)
    moments = MomentsSum()
    rows = features["train"].features
    for start in range(0, len(rows), _MOMENT_ROWS):
        moments.add(torch.from_numpy(rows[start : start + _MOMENT_ROWS].T[None]))
    of_features = moments.result()
    rounded = round_jointly(weight, scales, of_features).numpy()
    lost = (head.weight.astype(np.float64) - rounded) @ of_features.mean[0].numpy()
    bias = (head.bias + lost).astype(head.bias.dtype)
    weights = {**quantization.weights, _HEAD_WEIGHT: along_axis(scales.tolist(), axis=0)}
    rounded_head = dataclasses.replace(head, weight=rounded, bias=bias)
    return rounded_head, dataclasses.replace(quantization, weights=weights)


def _moved(exact: Head, rounded: Head, features: Features) -> float:
    """Return the root mean square change of the logits of training rows, as a share of their standard deviation."""
    rows = features["train"].features
    before = exact.predict_logits(rows).astype(np.float64)
    change = np.sqrt(np.square(rounded.predict_logits(rows) - before).mean())
    return float(change / max(before.std(axis=0).mean(), np.finfo(np.float64).tiny))
