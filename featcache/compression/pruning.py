"""`prune`: take channels or unused features out of a backbone (smaller, faster), or zero single weights (sparser)."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from featcache.cache import FeatureCache, borrow_cache
from featcache.compression.channels import TOLERANCE, Target, remove_channels
from featcache.compression.head_driven import remove_ignored_features
from featcache.compression.magnitude import PATTERNS, Pattern, zero_weights
from featcache.compression.measurement import compressed_bytes, graph_macs, latencies_ms, zero_share
from featcache.compression.recovering import NOT_KEPT, finish_step, recovered_step
from featcache.compression.recovery import Minutes, RecoverySettings
from featcache.compression.refitting import (
    Features,
    Source,
    SplitRows,
    compare_accuracy,
    extract_and_refit,
    float_features,
    open_source,
)
from featcache.compression.result import CompressResult
from featcache.engines import open_engine
from featcache.errors import InputError
from featcache.extract.inputs import Extractor
from featcache.heads import Head
from featcache.model.directory import save_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel, with_network
from featcache.model.reference import logits_of_images
from featcache.system.files import refuse_existing

PruneMethod = Literal["channel", "head", "magnitude"]
METHODS: tuple[PruneMethod, ...] = ("channel", "head", "magnitude")


def prune(
    model: MergedModel | str | os.PathLike[str],
    *,
    cache: FeatureCache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    method: PruneMethod = "channel",
    amount: float | None = None,
    pattern: Pattern | None = None,
    target: Target = "macs",
    recover: Minutes | Literal["off"] = "off",
    dataset: str | None = None,
    images: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> CompressResult:
    """Write a model with a part of it removed and return size, work, speed and accuracy, before and after.

    Then the head is fitted again on the pruned backbone's features, where they are others.

    Parameters
    ----------
    model
        A MODEL directory, or the model itself; not quantized.
    cache
        The one that its head was trained on, with its images where they were.
    out
        The MODEL directory to write.
    method
        ``channel`` removes whole channels and attention heads, those whose part the others can best take over, and
        solves the layers that read them again for the inputs that are left (`featcache.compression.channels`), until
        (1 − `amount`) of `target` is left, within 2 %; the features keep their width. ``head`` removes
        the features that a sparse head gives no weight, with the channels that make them: the logits stay, nothing is
        fitted again. ``magnitude`` sets that share of the weights to zero and solves those left again for the inputs
        they get: it saves bytes only after compression, and no time on usual hardware.
    amount
        The share to remove, above 0 and below 1; none for ``head``, 0.5 for the pattern ``2:4``.
    pattern
        For ``magnitude``: ``global`` (the default) ranks the weights of all layers together, ``layer`` takes the same
        share of each layer, ``2:4`` two of each four consecutive inputs.
    target
        What ``channel`` removes a share of: ``macs``, the multiplications of the exported graph, its ``parameters``, or
        its ``latency`` in ONNX Runtime on this machine, for one image.
    recover
        Minutes of training toward the float features before the head is refitted, ``auto`` for what the data are worth,
        ``off`` for none. Killed, the same call goes on with it from ``OUT.work``.
    dataset
        Which one of the cache, where it has several.
    images
        Where the images of the cache lie by now, if no longer where they were built from.
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
        Where `amount` cannot be removed from this network (with the most that can), the head ignores no feature that
        can go, or model and cache do not belong together.
    MissingError
        Where the images are gone.
    ExistsError
        Where `out` exists and `overwrite` is false.

    Examples
    --------
    >>> from featcache import prune
    >>> result = prune("model", cache="cache", out="sparse", method="magnitude", amount=0.5)
    >>> round(result.sparsity, 2), result.parameters > 0
    (0.5, True)
    """
    share, chosen = _closed_settings(method, amount, pattern)
    if target not in ("macs", "parameters", "latency"):
        raise InputError(f"--target must be 'macs', 'parameters' or 'latency', got {target!r}")
    if target != "macs" and method != "channel":
        raise InputError(f"--target {target} needs --method channel, got {method!r}")
    if recover != "off" and method == "head":
        raise InputError("--recover needs --method channel or magnitude: head loses nothing to win back")
    if recover != "off":
        RecoverySettings(minutes=recover)  # says what is wrong with it before anything is computed
    refuse_existing(Path(out), overwrite=overwrite)
    with borrow_cache(cache, images=images, dataset=dataset) as opened:
        source = open_source(model, opened, dataset=dataset)
        with tempfile.TemporaryDirectory() as folder:
            return _prune(source, Path(folder), out, method, share, chosen, target, recover, overwrite, say)


def _closed_settings(method: str, amount: float | None, pattern: str | None) -> tuple[float | None, Pattern | None]:
    """Return amount and pattern with nothing left open; `InputError` for those that do not go with `method`."""
    if method not in METHODS:
        raise InputError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    if method != "magnitude" and pattern is not None:
        raise InputError(f"--pattern goes with --method magnitude alone, got {pattern!r} for {method!r}: leave it out")
    if method == "head":
        if amount is not None:
            raise InputError(f"--method head takes no --amount, got {amount!r}: all that the head ignores goes")
        return None, None
    chosen: Any = "global" if method == "magnitude" and pattern is None else pattern
    if chosen not in (None, *PATTERNS):
        raise InputError(f"--pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
    if chosen == "2:4" and amount not in (None, 0.5):
        raise InputError(f"--amount must be 0.5 for --pattern 2:4, got {amount!r}: two of four weights go")
    share = 0.5 if chosen == "2:4" else amount
    if share is None:
        raise InputError(f"--amount must be given for --method {method}: the share to remove")
    if not 0 < share < 1:
        raise InputError(f"--amount must be above 0 and below 1, the share to remove, got {share!r}")
    return share, chosen


@dataclass(frozen=True, slots=True, eq=False)
class _Pruned:
    """A pruned model with its head, the head as it was before any refit, its features, and what there is to say."""

    model: MergedModel
    unfitted: Head
    features: Features
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refit_kept: bool = True


def _prune(
    source: Source,
    folder: Path,
    out: str | os.PathLike[str],
    method: PruneMethod,
    amount: float | None,
    pattern: Pattern | None,
    target: Target,
    recover: Minutes | Literal["off"],
    overwrite: bool,
    say: Callable[[str], None],
) -> CompressResult:
    from featcache.graph.write import write_onnx

    before: Features = float_features(source)
    original = write_onnx(source.model, folder / "before.onnx")
    macs_before = graph_macs(original)
    if method == "head":
        pruned = _fitted_to_head(source, before)
    elif method == "channel":
        assert amount is not None
        network = remove_channels(source, amount=amount, target=target, macs=macs_before).network
        pruned = _recovered(source, with_network(source.model, network), recover, Path(out), say)
    else:
        assert amount is not None
        assert pattern is not None
        sparse = zero_weights(source, amount=amount, pattern=pattern)
        changed = with_network(source.model, sparse.network)
        pruned = _recovered(source, changed, recover, Path(out), say, {"pattern": pattern}, sparse.notes)
    head = pruned.model.fitted_head
    comparison = compare_accuracy(
        source.model.fitted_head, head, before=before, after=pruned.features, unfitted=pruned.unfitted
    )
    step = {
        "verb": "prune",
        "method": method,
        "amount": amount,
        **pruned.settings,
        "refit_kept": pruned.refit_kept,
        "accuracy": dataclasses.asdict(comparison),
    }
    final = MergedModel(
        pruned.model.backbone, head, recipe=pruned.model.recipe, surgery=pruned.model.surgery,
        lineage=[*source.model.lineage, step],
    )  # fmt: skip
    graph = write_onnx(final, folder / "after.onnx")
    macs = graph_macs(graph)
    if method == "channel" and target == "macs":
        assert amount is not None
        _check_amount(macs, macs_before, amount)
    packed = compressed_bytes(original), compressed_bytes(graph)
    said = list(pruned.notes)
    if method == "magnitude":
        said.append(
            f"zeros save no byte of the file ({graph.stat().st_size:,}) and no time on usual hardware; compressed "
            f"(zlib) it has {packed[1]:,} bytes in place of {packed[0]:,}"
        )
    times = latencies_ms([original, graph])
    path = save_model(final, out, golden=_golden(source.golden, final), overwrite=overwrite)
    if recover != "off":
        finish_step(Path(out))
    return CompressResult(
        model=str(path),
        method=method,
        amount=amount,
        parameters=final.parameter_count(),
        macs=macs,
        macs_before=macs_before,
        sparsity=zero_share(final),
        bytes_before=original.stat().st_size,
        bytes_after=graph.stat().st_size,
        compressed_bytes_before=packed[0],
        compressed_bytes_after=packed[1],
        **dataclasses.asdict(comparison),
        latency_ms_before=times[0],
        latency_ms_after=times[1],
        integer_convolutions=None,
        convolutions=sum(isinstance(module, nn.Conv2d) for module in final.backbone.modules()),
        head_precision="float",
        weights=final.recipe.weights,
        random_weights=final.recipe.random_weights,
        settings=pruned.settings,
        refit_kept=pruned.refit_kept,
        notes=tuple(said),
    )


def _recovered(
    source: Source,
    changed: MergedModel,
    recover: Minutes | Literal["off"],
    out: Path,
    say: Callable[[str], None],
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> _Pruned:
    """Return the `changed` model trained for so long, with the head that its own features make."""
    done = dict(settings or {})
    if recover != "off":
        changed, done["recovery"] = recovered_step(source, changed, recover, out=out, say=say)
        notes = (*notes, *(() if done["recovery"]["kept"] else (NOT_KEPT,)))
    return _refitted(source, changed, done, notes)


def _refitted(source: Source, changed: MergedModel, settings: Mapping[str, Any], notes: Sequence[str]) -> _Pruned:
    """Return the `changed` model with the head that its own features make."""
    plan = source.cache.recipe
    with open_engine(changed.backbone, engine=plan.engine, precision=plan.precision, cached=False) as engine:
        recipe = dataclasses.replace(
            changed.recipe, engine=engine.name, engine_version=engine.version, precision=engine.precision
        )
        refit = extract_and_refit(source, Extractor(engine, recipe))
    model = MergedModel(changed.backbone, refit.head, recipe=recipe, surgery=changed.surgery, lineage=changed.lineage)
    return _Pruned(model, source.model.fitted_head, refit.features, settings, (*notes, *refit.notes), refit.kept)


def _fitted_to_head(source: Source, before: Features) -> _Pruned:
    """Return the model without the features its head ignores: the rows are those at hand, with fewer columns."""
    narrow = remove_ignored_features(source.model)
    changed = with_network(source.model, narrow.network)
    head = dataclasses.replace(narrow.head, fingerprint=changed.recipe.fingerprint)
    features = {
        split: SplitRows(np.ascontiguousarray(rows.features[:, narrow.kept]), rows.targets)
        for split, rows in before.items()
    }
    width = source.model.fitted_head.num_features
    settings = {
        "features_before": width,
        "features": head.num_features,
        "max_logit_difference": narrow.difference,
    }
    notes = [
        f"the {width - head.num_features} features that went, in {narrow.seconds:.2f} s, have no weight in the head: "
        f"its logits stay within {narrow.difference:.1g}, so it was not fitted again"
    ]
    if narrow.staying:
        notes.append(f"{narrow.staying} more features without weight stay: {narrow.reason}")
    model = MergedModel(
        changed.backbone, head, recipe=changed.recipe, surgery=changed.surgery, lineage=changed.lineage
    )  # fmt: skip
    return _Pruned(model, head, features, settings, tuple(notes))


def _check_amount(macs: int, macs_before: int, amount: float) -> None:
    left, wanted = macs / macs_before, 1 - amount
    if abs(left - wanted) > TOLERANCE * wanted:
        raise InputError(
            f"--amount must be what channels of this network can be removed to, {amount!r} is not: nearest is "
            f"{1 - left:.3f}"
        )


def _golden(golden: Golden | None, model: MergedModel) -> Golden | None:
    if golden is None:
        return None
    logits: Any = logits_of_images(model, golden.images)
    return Golden(golden.kind, "torch fp32", golden.images, logits)
