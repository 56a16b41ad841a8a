"""`prune`: take channels out of a backbone (smaller, faster) or zero single weights (sparser), then refit the head."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featcache.cache import FeatureCache, borrow_cache
from featcache.compress.channels import TOLERANCE, Target, remove_channels
from featcache.compress.measurement import graph_macs, latencies_ms, zero_share
from featcache.compress.recovering import NOT_KEPT, finish_step, recovered_step
from featcache.compress.recovery import Minutes, RecoverySettings
from featcache.compress.refitting import (
    Features,
    Source,
    compare_accuracy,
    extract_and_refit,
    float_features,
    open_source,
)
from featcache.compress.result import CompressResult
from featcache.engines import open_engine
from featcache.errors import InputError
from featcache.model.directory import save_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel, changed_recipe, wrap_network
from featcache.model.reference import logits_of_images
from featcache.model.surgery import Surgery
from featcache.model.widths import changed_widths, layer_widths
from featcache.system.files import refuse_existing

PruneMethod = Literal["magnitude", "channel"]


def prune(
    model: MergedModel | str | os.PathLike[str],
    *,
    cache: FeatureCache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    method: PruneMethod = "channel",
    amount: float,
    target: Target = "macs",
    recover: Minutes | Literal["off"] = "off",
    dataset: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> CompressResult:
    """Write a model with a part of it removed and return size, work, speed and accuracy, before and after.

    Then the head is fitted again on the pruned backbone's features.

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
        solves the layers that read them again for the inputs that are left (`featcache.compress.channels`), until
        (1 − `amount`) of `target` is left, within 2 %; the features keep their width. ``magnitude`` sets that
        share of the weights to zero, the smallest of each layer first: it saves bytes only after compression, and no
        time on usual hardware.
    amount
        The share to remove, above 0 and below 1.
    target
        Of what: ``macs``, the multiplications of the exported graph, its ``parameters``, or its ``latency`` in ONNX
        Runtime on this machine, for one image.
    recover
        Minutes of training toward the float features before the head is refitted, ``auto`` for what the data are worth,
        ``off`` for none. Killed, the same call goes on with it from ``OUT.work``.
    dataset
        Which one of the cache, where it has several.
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
        Where `amount` cannot be removed from this network (with the most that can), or model and cache do not belong
        together.
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
    if method not in ("magnitude", "channel"):
        raise InputError(f"--method must be 'magnitude' or 'channel', got {method!r}")
    if not 0 < amount < 1:
        raise InputError(f"--amount must be above 0 and below 1, the share to remove, got {amount!r}")
    if target not in ("macs", "parameters", "latency"):
        raise InputError(f"--target must be 'macs', 'parameters' or 'latency', got {target!r}")
    if target != "macs" and method != "channel":
        raise InputError(f"--target {target} needs --method channel, got {method!r}")
    if recover != "off":
        RecoverySettings(minutes=recover)  # says what is wrong with it before anything is computed
    refuse_existing(Path(out), overwrite=overwrite)
    with borrow_cache(cache) as opened:
        source = open_source(model, opened, dataset=dataset)
        with tempfile.TemporaryDirectory() as folder:
            return _prune(source, Path(folder), out, method, amount, target, recover, overwrite, say)


def _prune(
    source: Source,
    folder: Path,
    out: str | os.PathLike[str],
    method: PruneMethod,
    amount: float,
    target: Target,
    recover: Minutes | Literal["off"],
    overwrite: bool,
    say: Callable[[str], None],
) -> CompressResult:
    from featcache.graph.write import write_onnx

    before: Features = float_features(source)
    original = write_onnx(source.model, folder / "before.onnx")
    macs_before = graph_macs(original)
    if method == "channel":
        network = remove_channels(source, amount=amount, target=target, macs=macs_before).network
    else:
        network = copy.deepcopy(source.model.backbone.network)
        zero_smallest(network, amount)
    surgery = Surgery(
        source.model.surgery.folded,
        {**source.model.surgery.widths, **changed_widths(network, layer_widths(source.model.backbone.network))},
    )
    pruned = _with_network(source.model, network, surgery)
    recovery = None
    if recover != "off":
        pruned, recovery = recovered_step(source, pruned, recover, out=Path(out), say=say)
    plan = source.cache.recipe
    with open_engine(pruned.backbone, engine=plan.engine, precision=plan.precision, cached=False) as engine:
        recipe = dataclasses.replace(
            pruned.recipe, engine=engine.name, engine_version=engine.version, precision=engine.precision
        )
        refit = extract_and_refit(source, engine=engine, recipe=recipe)
    notes = refit.notes
    comparison = compare_accuracy(source.model.fitted_head, refit.head, before=before, after=refit.features)
    step = {
        "verb": "prune", "method": method, "amount": amount, "refit_kept": refit.kept,
        "accuracy": dataclasses.asdict(comparison),
    }  # fmt: skip
    if recovery is not None:
        step["recovery"] = recovery
        if not recovery["kept"]:
            notes = (*notes, NOT_KEPT)
    final = MergedModel(
        pruned.backbone, refit.head, recipe=recipe, surgery=surgery, lineage=[*source.model.lineage, step]
    )  # fmt: skip
    graph = write_onnx(final, folder / "after.onnx")
    macs = graph_macs(graph)
    if method == "channel" and target == "macs":
        _check_amount(macs, macs_before, amount)
    times = latencies_ms([original, graph])
    path = save_model(final, out, golden=_golden(source.golden, final), overwrite=overwrite)
    if recovery is not None:
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
        **dataclasses.asdict(comparison),
        latency_ms_before=times[0],
        latency_ms_after=times[1],
        integer_convolutions=None,
        convolutions=sum(isinstance(module, nn.Conv2d) for module in network.modules()),
        head_precision="float",
        weights=recipe.weights,
        random_weights=recipe.random_weights,
        settings={} if recovery is None else {"recovery": recovery},
        refit_kept=refit.kept,
        notes=tuple(notes),
    )


def zero_smallest(network: nn.Module, amount: float) -> None:
    """Set the share `amount` of the weights of convolutions and linear layers to zero, in place.

    Which ones is decided over all layers by the layer-adaptive magnitude score (Lee et al. 2021, LAMP): a weight's
    square over the sum of all squares of its layer that are not smaller.
    """
    weights: list[Tensor] = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    scores = []
    for weight in weights:
        squares, order = weight.detach().double().square().flatten().sort(descending=True)
        score = torch.empty_like(squares)
        score[order] = squares / squares.cumsum(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
        scores.append(score)
    every = torch.cat(scores)
    removed = torch.zeros(len(every), dtype=torch.bool)
    removed[torch.topk(every, round(amount * len(every)), largest=False).indices] = True
    with torch.no_grad():
        start = 0
        for weight in weights:
            weight[removed[start : start + weight.numel()].view_as(weight)] = 0
            start += weight.numel()


def _with_network(model: MergedModel, network: nn.Module, surgery: Surgery) -> MergedModel:
    """Return `model` with this changed network and the Recipe that names it by its digest; the head is the old one."""
    made = MergedModel(
        wrap_network(network, model.recipe, outputs=model.backbone.outputs), model.fitted_head, recipe=model.recipe,
        surgery=surgery, lineage=model.lineage,
    )  # fmt: skip
    recipe = changed_recipe(made)
    backbone = wrap_network(network, recipe, outputs=model.backbone.outputs)
    return MergedModel(backbone, model.fitted_head, recipe=recipe, surgery=surgery, lineage=model.lineage)


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
