"""`compare_heads`: several caches, outputs and heads, each trained alike; a table, and the best on val."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product

from featcache.errors import InputError
from featcache.system.cluster import cluster
from featcache.system.objects import ObjectPath
from featcache.train.fit import train_head
from featcache.train.options import (
    CacheOrPath,
    DistillationOptions,
    HeadOptions,
    LinearOptions,
    SupervisedOptions,
    TrainOptions,
)
from featcache.train.result import FitResult
from featcache.train.settings import TrainSettings, differing


@dataclass(frozen=True, slots=True)
class HeadComparison:
    """Several results and what to call each: what `compare_heads` returns.

    Attributes
    ----------
    results : tuple of FitResult
        In the order of caches, then heads, then outputs.
    titles : tuple of str
        For each, in what it differs from the others.

    Examples
    --------
    >>> import featcache
    >>> heads = [featcache.MlpOptions(epochs=2), featcache.PrototypeOptions(metric="cosine")]
    >>> comparison = featcache.compare_heads("cache", heads=heads)
    >>> comparison.titles
    ('cache mlp', 'cache prototype')
    >>> print(comparison.table())
    head             features  used   train     val    test  seconds
    cache mlp        ...
    cache prototype  ...
    """

    results: tuple[FitResult, ...]
    titles: tuple[str, ...]

    @property
    def best(self) -> FitResult | None:
        """The result with the best val score, the earliest of equals; None where no data set has a val split."""
        scored = [result for result in self.results if result.val_score is not None]
        return max(scored, key=lambda result: result.val_score or 0.0) if scored else None

    def table(self) -> str:
        """Return a plain-text table, one line per result, the best val score marked by ``*``."""
        best = self.best
        rows = [("head", "features", "used", "train", "val", "test", "seconds")]
        for title, result in zip(self.titles, self.results, strict=True):
            used = "" if result.features_used is None else str(result.features_used)
            train, val, test = (_percent(value) for value in (result.train_score, result.val_score, result.test_score))
            val += "*" if result is best else " "
            rows.append((title, str(result.num_features), used, train, val, test, f"{result.wall_seconds:.2f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for title, *figures in rows:
            cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
            lines.append("  ".join([title.ljust(widths[0]), *cells]).rstrip())
        return "\n".join(lines)


def compare_heads(
    caches: CacheOrPath | Sequence[CacheOrPath],
    *,
    heads: Iterable[HeadOptions] = (),
    outputs: Iterable[Sequence[str] | None] = (),
    options: TrainOptions | None = None,
    distillation: DistillationOptions | None = None,
    dataset: str | None = None,
    memory_bytes: int | None = None,
    ray: str | None = None,
    actors: int | None = None,
) -> HeadComparison:
    """Return every head of `heads` trained on every cache and choice of outputs; the best on val is ``best``.

    Parameters
    ----------
    caches : FeatureCache, path or a sequence of them
        What to train on.
    heads : iterable of LinearOptions, MlpOptions, PrototypeOptions and KnnOptions
        Default: a linear head whose L2 penalty is chosen.
    outputs : iterable of sequences of str
        Stored outputs to lay side by side; each sequence is one candidate. Default: those of `options`.
    options : TrainOptions, optional
        The same for all.
    distillation : DistillationOptions, optional
        The same for all linear heads and MLPs; the other kinds learn from labels alone.
    dataset, memory_bytes, ray, actors
        As for `train_head`.

    Returns
    -------
    HeadComparison
        The results, their table and the best of them.

    Raises
    ------
    InputError
        As `train_head` does; for settings that do not go together before anything is trained.

    Examples
    --------
    >>> import featcache
    >>> heads = [featcache.LinearOptions(l2=0.01), featcache.LinearOptions(l2=1.0), featcache.KnnOptions()]
    >>> comparison = featcache.compare_heads("cache", heads=heads)
    >>> [result.kind for result in comparison.results]
    ['linear', 'linear', 'knn']
    >>> comparison.best is max(comparison.results, key=lambda result: result.val_score)
    True
    """
    places = [caches] if isinstance(caches, str | os.PathLike) or not isinstance(caches, Sequence) else [*caches]
    if not places:
        raise InputError("a comparison needs a cache, got none")
    kinds = [*heads] or [LinearOptions()]
    shared = options or TrainOptions()
    sides = [*outputs] or [shared.outputs]
    if distillation is not None and not any(isinstance(head, SupervisedOptions) for head in kinds):
        TrainSettings(head=kinds[0], distillation=distillation)  # refuses
    fits = [
        TrainSettings(
            head=head,
            options=dataclasses.replace(shared, outputs=side),
            distillation=distillation if isinstance(head, SupervisedOptions) else None,
        )
        for head in kinds
        for side in sides
    ]
    results, titles = [], []
    with nullcontext() if ray is None else cluster(ray):  # all in the same
        for place, fit in product(places, fits):
            results.append(
                train_head(
                    place,
                    head=fit.head,
                    options=fit.options,
                    distillation=fit.distillation,
                    dataset=dataset,
                    memory_bytes=memory_bytes,
                    ray=ray,
                    actors=actors,
                )
            )
            name = str(place if isinstance(place, str | os.PathLike | ObjectPath) else place.path)
            titles.append(name if len(fits) == 1 else " ".join([name, *_title(fit, kinds)]))
    return HeadComparison(tuple(results), tuple(titles))


def _title(fit: TrainSettings, heads: Sequence[HeadOptions]) -> list[str]:
    """Return the kind, the outputs where they are stated, and the options in which heads of the kind differ."""
    title = [fit.head.kind]
    if fit.options.outputs is not None:
        title.append(",".join(fit.options.outputs))
    alike = [set(differing(head)) for head in heads if head.kind == fit.head.kind]
    common = set.intersection(*alike)
    title += [f"{name}={value}" for name, value in differing(fit.head) if (name, value) not in common]
    return title


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
