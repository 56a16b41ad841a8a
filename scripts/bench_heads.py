"""Time the exact head solvers against scikit-learn, celer and skglm, side by side, on real cached rows.

    python scripts/bench_heads.py [--only l2|sweep|l1|group|quality|choice] [--json OUT] [--repeats 3]

Each timed fit starts from raw float32 features and includes standardisation, for both sides; runs are alternated. Both
objectives are recomputed here in float64 from the returned weights, by the formula of the docstring of `objective`.
Real rows come from featcache's own cache of ../shared's photos (skipped by name where they are absent).
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
DATA = Path.home() / ".cache" / "featcache-data"
WEIGHTS = "mobilenetv2_100.tf_float_headless"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def unpacked(archive: str) -> Path | None:
    """Return the folder of an archive of ../shared, unpacked once, or None where it is absent."""
    folder = DATA / archive.split(".")[0]
    if not folder.exists():
        source = SHARED / "datasets" / archive
        if not source.exists():
            return None
        with tarfile.open(source) as tar:
            tar.extractall(DATA, filter="data")
    return folder


def cached(name: str, images: Path, *, views: int = 1):
    """Return the opened cache of `images`, built where it is not there yet."""
    from featcache import build_cache, open_cache

    place = DATA / "heads" / f"{name}-{views}"
    weights = SHARED / "weights" / f"{WEIGHTS}.safetensors"
    build_cache(images, place, backbone="mobilenetv2_100", weights=weights, views=views)
    return open_cache(place)


def tiny_rows():
    """Return (features, labels) of 10,000 train and 2,000 val photos of tinyimagenet200, or None."""
    folder = unpacked("tinyimagenet200_40k.tar.gz")
    if folder is None or not (SHARED / "weights").exists():
        return None
    table = folder / "bench_heads.csv"
    if not table.exists():
        lines = ["path,label,split"]
        for split, most in (("train", 50), ("val", 10)):
            for kind in sorted((folder / split).iterdir()):
                photos = sorted(kind.iterdir())[:most]
                lines += [f"{photo.relative_to(folder)},{kind.name},{split}" for photo in photos]
        table.write_text("\n".join(lines) + "\n")
    cache = cached("tinyimagenet200", table)
    return cache.numpy(split="train"), cache.numpy(split="val")


def clothing_rows(views: int = 1):
    folder = unpacked("clothing10.tar")
    if folder is None or not (SHARED / "weights").exists():
        return None
    return cached("clothing10", folder, views=views)


def simulated(n: int = 50_000, d: int = 768, k: int = 100):
    """Return correlated Gaussian features with a network's spectrum (eigenvalue j about 1/j) and their labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, k, n)
    scale = 1.0 / np.sqrt(1.0 + np.arange(d))
    latent = generator.normal(size=(n, d)) * scale * 6
    latent += (generator.normal(size=(k, d)) * scale * 4)[labels]
    turn = np.linalg.qr(generator.normal(size=(d, d)))[0]
    return (latent @ turn + 1.0).astype(np.float32), labels


def standardised(features: np.ndarray) -> np.ndarray:
    """Return z float64 as C3 says: by the mean and standard deviation of the rows."""
    wide = features.astype(np.float64)
    std = wide.std(axis=0)
    return (wide - wide.mean(axis=0)) / np.where(std > 0, std, 1.0)


def objective(z, labels, weight, bias, *, l1: float = 0.0, l2: float = 0.0) -> float:
    """Return mean CE(y, W z + b) + l1 |W|_1 + l2/2 |W|^2 in float64; one weight row means a binary logit."""
    weight, bias = np.atleast_2d(weight).astype(np.float64), np.atleast_1d(bias).astype(np.float64)
    logits = z @ weight.T + bias
    if len(weight) == 1:
        loss = np.logaddexp(0.0, logits[:, 0]).mean() - (logits[:, 0] * labels).mean()
    else:
        top = logits.max(axis=1)
        sums = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
        loss = (sums - logits[np.arange(len(z)), labels]).mean()
    return float(loss + l1 * np.abs(weight).sum() + 0.5 * l2 * (weight**2).sum())


def timed(action: Callable):
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def sklearn_fit(features, labels, **settings):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    z = StandardScaler().fit_transform(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(**settings).fit(z, labels)


def threads() -> int:
    import os

    return len(os.sched_getaffinity(0))


def bench_one_l2(name: str, features, labels, l2: float, repeats: int) -> dict:
    """Time one fit to a relative gap of 1e-6 against scikit-learn's solvers at the loosest tolerance reaching it."""
    from featcache.heads.solvers import Problem, solve

    problem = Problem(features=features, targets=labels)
    z = standardised(features)
    strength = 1.0 / (len(labels) * l2)
    best = solve(problem, l2=l2, tolerance=1e-9, max_passes=150)
    optimum = objective(z, labels, best.weight, best.bias, l2=l2)
    ours, seconds = timed(lambda: solve(problem, l2=l2, tolerance=1e-6, exact_objective=False))
    our_times, rows = [seconds], {}
    for solver, tolerances in (("lbfgs", (3e-5, 1e-5, 3e-6, 1e-6, 3e-7)), ("newton-cg", (3e-4, 3e-5, 3e-6, 3e-7))):
        for tolerance in tolerances:
            settings = {"C": strength, "solver": solver, "tol": tolerance, "max_iter": 2000}
            fit, seconds = timed(lambda settings=settings: sklearn_fit(features, labels, **settings))
            reached = objective(z, labels, fit.coef_, fit.intercept_, l2=l2)
            if reached / optimum - 1 <= 1e-6 or tolerance == tolerances[-1]:
                break
        rows[solver] = {"settings": settings, "objective": reached, "times": [seconds]}
    # a solver that stopped short of the gap is the peer only where none came there
    best_peer = min(rows, key=lambda solver: (rows[solver]["objective"] / optimum - 1 > 1e-6, rows[solver]["times"][0]))
    for _ in range(repeats - 1):  # alternated
        our_times.append(timed(lambda: solve(problem, l2=l2, tolerance=1e-6, exact_objective=False))[1])
        peer = rows[best_peer]
        peer["times"].append(timed(lambda peer=peer: sklearn_fit(features, labels, **peer["settings"]))[1])
    peer_seconds = float(np.median(rows[best_peer]["times"]))
    reached = objective(z, labels, ours.weight, ours.bias, l2=l2)
    return {
        "data": f"{name} {features.shape[0]} x {features.shape[1]} x {int(labels.max()) + 1}",
        "penalty": l2,
        "ratio": peer_seconds / float(np.median(our_times)),
        "seconds_ours": float(np.median(our_times)),
        "seconds_peer": peer_seconds,
        "peer": best_peer,
        "peers": {name: {"seconds": row["times"][0], "objective": row["objective"]} for name, row in rows.items()},
        "newton_cholesky": "not feasible: its Hessian has (n_classes * (n_features + 1))^2 entries",
        "objective_ours": reached,
        "objective_peer": rows[best_peer]["objective"],
        "relative_gap_ours": reached / optimum - 1,
        "relative_gap_peer": rows[best_peer]["objective"] / optimum - 1,
        "gap": ours.gap,
        "passes": ours.passes,
        "threads": threads(),
    }


def chosen_l2(features, labels, val) -> float:
    from featcache.heads.solvers import Problem, solve_path

    path = solve_path(Problem(features=features, targets=labels), values=np.logspace(0, -3, 13), tolerance=1e-3)
    scores = [float(((val[0] @ s.raw_weight().T + s.raw_bias()).argmax(1) == val[1]).mean()) for s in path]
    best = int(np.argmax(scores))
    say(f"  l2 chosen on val: {path[best].l2:.4g}, accuracy {scores[best]:.4f}")
    return path[best].l2


def bench_l2(repeats: int) -> list[dict]:
    results = []
    rows = tiny_rows()
    if rows is None:
        say("tinyimagenet200: skipped, ../shared is absent")
    else:
        (features, labels), val = rows
        results.append(bench_one_l2("tinyimagenet200", features, labels, chosen_l2(features, labels, val), repeats))
    cache = clothing_rows()
    if cache is None:
        say("clothing10: skipped, ../shared is absent")
    else:
        features, labels = cache.numpy(split="train")
        l2 = chosen_l2(features, labels, cache.numpy(split="val"))
        results.append(bench_one_l2("clothing10", features, labels, l2, repeats))
    features, labels = simulated()
    results.append(bench_one_l2("simulated", features, labels, 1e-2, 1))
    return results


def bench_sweep(repeats: int) -> list[dict]:
    """Time 45 penalties against scikit-learn's loop of cold fits at its default tolerance (five, times nine)."""
    results = []
    rows, cache = tiny_rows(), clothing_rows()
    if rows is None or cache is None:
        say("sweep of photos: skipped, ../shared is absent")
    else:
        results.append(_sweep("tinyimagenet200", *rows[0], (4, 13, 22, 31, 40)))
        results.append(_sweep("clothing10", *cache.numpy(split="train"), (4, 13, 22, 31, 40)))
    results.append(_sweep("simulated", *simulated(), (13, 31)))
    return results


def _sweep(name: str, features, labels, timed_values: tuple[int, ...]) -> dict:
    from featcache.heads.solvers import Problem, penalty_grid, prepare, solve_path

    problem = Problem(features=features, targets=labels)
    values = penalty_grid(prepare(problem), penalty="l2")
    z = standardised(features)
    path, seconds = timed(lambda: solve_path(problem, values=values, tolerance=9e-5))
    say(f"  {name}: {len(values)} values in {seconds:.2f} s, all converged: {all(s.converged for s in path)}")
    peer_seconds, table = 0.0, []
    for index in timed_values:
        solution = path[index]
        settings = {"C": 1.0 / (len(labels) * solution.l2), "solver": "lbfgs", "max_iter": 1000}
        fit, spent = timed(lambda settings=settings: sklearn_fit(features, labels, **settings))
        peer_seconds += spent
        ours = objective(z, labels, solution.weight, solution.bias, l2=solution.l2)
        theirs = objective(z, labels, fit.coef_, fit.intercept_, l2=solution.l2)
        table.append({"penalty": solution.l2, "objective_ours": ours, "objective_peer": theirs, "seconds_peer": spent})
        say(f"  l2 {solution.l2:.4g}: ours / peer - 1 = {ours / theirs - 1:+.2e}, peer {spent:.1f} s")
    scale = len(values) / len(timed_values)
    return {
        "data": f"{name} {features.shape[0]} x {features.shape[1]} x {int(labels.max()) + 1}, {len(values)} values",
        "penalty": [float(v) for v in values],
        "ratio": peer_seconds * scale / seconds,
        "seconds_ours": seconds,
        "seconds_peer": peer_seconds * scale,
        "peer": f"scikit-learn lbfgs, cold, timed on {len(timed_values)} values and scaled by {scale:g}",
        "objective_ours": [row["objective_ours"] for row in table],
        "objective_peer": [row["objective_peer"] for row in table],
        "worst": max(row["objective_ours"] / row["objective_peer"] - 1 for row in table),
        "gap": max(s.gap for s in path),
        "passes": sum(s.passes for s in path),
        "threads": threads(),
    }


def bench_l1(repeats: int) -> list[dict]:
    """Time 50 penalties: softmax against saga (three values, scaled), one class against the rest against the others."""
    from featcache.heads.solvers import Problem, solve_path

    cache = clothing_rows()
    if cache is None:
        say("l1: skipped, ../shared is absent")
        return []
    features, labels = cache.numpy(split="train")
    z, n = standardised(features), len(labels)
    results = []
    path, seconds = timed(lambda: solve_path(Problem(features=features, targets=labels), penalty="l1", tolerance=1e-4))
    spent, rows = 0.0, []
    for index in (12, 25, 38):
        s = path[index]
        settings = {"C": 1 / (n * s.l1), "l1_ratio": 1.0, "solver": "saga", "tol": 1e-3, "max_iter": 500}
        fit, once = timed(lambda settings=settings: sklearn_fit(features, labels, **settings))
        spent += once
        ours = objective(z, labels, s.weight, s.bias, l1=s.l1)
        rows.append((s.l1, ours, objective(z, labels, fit.coef_, fit.intercept_, l1=s.l1)))
        say(f"  softmax l1 {s.l1:.4g}: ours / saga - 1 = {ours / rows[-1][2] - 1:+.2e}, saga {once:.1f} s")
    results.append(
        _l1_result("clothing10 softmax, 50 values", "saga, three values scaled", rows, path, seconds, spent / 3 * 50)
    )
    target = (labels == 0).astype(np.int64)
    problem = Problem(features=features, targets=target[:, None].astype(np.float32), loss="sigmoid")
    path, seconds = timed(lambda: solve_path(problem, penalty="l1", tolerance=1e-4))
    values = [s.l1 for s in path]
    for name, peer in (("saga", _saga), ("liblinear", _liblinear), ("skglm", _skglm), ("celer", _celer)):
        try:
            few = np.r_[:60, -60:0]
            peer(features[few], target[few], values[:2])  # what is compiled on first use is not timed
            fits, spent = timed(lambda peer=peer: peer(features, target, values))
        except ImportError as error:
            say(f"  {name}: skipped, {error}")
            continue
        rows = [
            (s.l1, objective(z, target, s.weight, s.bias, l1=s.l1), objective(z, target, *fit, l1=s.l1))
            for s, fit in zip(path, fits, strict=True)
        ]
        results.append(_l1_result("clothing10 one against the rest, 50 values", name, rows, path, seconds, spent))
    return results


def _l1_result(data: str, peer: str, rows, path, seconds: float, peer_seconds: float) -> dict:
    return {
        "data": data,
        "penalty": [row[0] for row in rows],
        "ratio": peer_seconds / seconds,
        "seconds_ours": seconds,
        "seconds_peer": peer_seconds,
        "peer": peer,
        "objective_ours": [row[1] for row in rows],
        "objective_peer": [row[2] for row in rows],
        "worst": max(row[1] / row[2] - 1 for row in rows),
        "peer_worst": max(row[2] / row[1] - 1 for row in rows),
        "gap": max(s.gap for s in path),
        "passes": sum(s.passes for s in path),
        "threads": threads(),
    }


def _scaled(features):
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit_transform(features.astype(np.float64))


def _warm_sklearn(features, target, values, **settings):
    from sklearn.linear_model import LogisticRegression

    z, fits = _scaled(features), []
    model = LogisticRegression(l1_ratio=1.0, warm_start=True, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in values:
            model.set_params(C=1 / (len(target) * value)).fit(z, target)
            fits.append((model.coef_.copy(), model.intercept_.copy()))
    return fits


def _saga(features, target, values):
    return _warm_sklearn(features, target, values, solver="saga", tol=1e-3, max_iter=300)


def _liblinear(features, target, values):  # penalises the bias a little: a large intercept_scaling keeps that small
    return _warm_sklearn(features, target, values, solver="liblinear", tol=1e-4, intercept_scaling=100.0)


def _skglm(features, target, values):
    from skglm import SparseLogisticRegression

    z, fits = np.asfortranarray(_scaled(features)), []
    model = SparseLogisticRegression(alpha=1.0, tol=1e-4, warm_start=True, fit_intercept=True)
    for value in values:
        model.alpha = value
        model.fit(z, target)
        fits.append((model.coef_.copy().ravel(), np.ravel(model.intercept_)[:1].copy()))
    return fits


def _celer(features, target, values):  # has no intercept: its objective is another one, and cannot be lower than ours
    from celer import LogisticRegression

    z, fits = np.asfortranarray(_scaled(features)), []
    model = LogisticRegression(C=1.0, penalty="l1", tol=1e-4, warm_start=True)
    for value in values:
        model.C = 1 / (len(target) * value)
        model.fit(z, target)
        fits.append((model.coef_.copy(), np.zeros(1)))
    return fits


def digits_rows(views: int = 1):
    folder = DATA / "digits"
    if not folder.exists() or not (SHARED / "weights").exists():
        return None
    return cached("digits", folder, views=views)


def bench_group(repeats: int) -> list[dict]:
    """Compare the head on the features that group L1 keeps with the L2 head on all, by five paired folds."""
    return _quality("clothing10", clothing_rows, n_views=1)


def bench_choice(repeats: int) -> list[dict]:
    """Time `--l2 auto` from 40,000 cached rows of the embedded backbone, 200 classes, against looks solved as exactly
    as the last fit begins; both choices and both objectives are told."""
    import featcache
    from featcache.train import search

    folder = unpacked("tinyimagenet200_40k.tar.gz")
    if folder is None:
        return []
    place = DATA / "heads" / "tiny-nano"
    featcache.build_cache(folder, place)
    ways = {"loose looks": search.LONG_FITS, "exact looks": 1 << 62}
    found: dict[str, list] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, least in ways.items():
            with mock.patch.object(search, "LONG_FITS", least):
                found[way].append(timed(lambda: featcache.train_head(place)))
    one = timed(lambda: featcache.train_head(place, head=featcache.LinearOptions(l2=found["loose looks"][0][0].l2)))
    rows = []
    for way, runs in found.items():
        fit = runs[0][0]
        row = {
            "data": "tinyimagenet200, featcache_nano: 40,000 x 1024 x 200", "way": way,
            "seconds": float(np.median([seconds for _, seconds in runs])), "one_fit_seconds": one[1], "l2": fit.l2,
            "objective": fit.objective, "gap": fit.gap, "val_accuracy": fit.val_accuracy,
        }  # fmt: skip
        say(
            f"{row['data']}, {way}: {row['seconds']:.1f} s (one penalty {one[1]:.1f} s), l2 {fit.l2:.4g}, objective "
            f"{fit.objective:.7f} (gap {fit.gap:.1g}), val {100 * fit.val_accuracy:.2f} %"
        )
        rows.append(row)
    return rows


def bench_quality(repeats: int) -> list[dict]:
    """Compare heads by five paired folds: as `bench_group`, and training on drawn views, soft labels, mixes."""
    return [*_quality("clothing10", clothing_rows, n_views=4), *_quality("digits", digits_rows, n_views=4)]


def _quality(name: str, rows_of: Callable, *, n_views: int) -> list[dict]:
    from featcache.heads.solvers import Problem, solve_path
    from featcache.train.data import Rows, TrainingData
    from featcache.train.folds import stratified_folds
    from featcache.train.linear import fit_linear
    from featcache.train.options import LinearOptions, TrainOptions
    from featcache.train.targets import Supervision, mix, smooth

    viewed = rows_of(views=n_views)
    if viewed is None:
        say(f"quality of {name}: skipped, its photos or ../shared are absent")
        return []
    views = [viewed.numpy(view=view)[0] for view in range(n_views)]
    features, labels = viewed.numpy()
    k = int(labels.max()) + 1
    fold = stratified_folds(np.arange(len(labels)), labels, task="classification", folds=5, seed=0)
    right: dict[str, np.ndarray] = {}
    used = []
    for held in range(5):
        test, val = fold == held, fold == (held + 1) % 5
        train = ~test & ~val
        x, y = features[train], labels[train]

        def score(s, rows):
            return (features[rows] @ s.raw_weight().T + s.raw_bias()).argmax(1) == labels[rows]

        def take(head, path, score=score, val=val, test=test):
            best = max(path, key=lambda s: score(s, val).mean())
            right.setdefault(head, np.zeros(len(labels)))[test] = score(best, test)
            return best

        def ridge(problem):
            return solve_path(problem, values=np.logspace(0.5, -3, 15), tolerance=1e-3)

        plain = Problem(features=x, targets=y)
        take("l2", ridge(plain))
        data = TrainingData(
            dataset=name,
            task="classification",
            classes=tuple(map(str, range(k))),
            columns=("features",),
            block_widths=(features.shape[1],),
            train=Rows(x, y, np.flatnonzero(train)),
            val=Rows(features[val], labels[val], np.flatnonzero(val)),
            test=None,
            unlabelled=None,
            samples=None,
            unlabelled_samples=None,
            notes=(),
        )
        head = fit_linear(
            data, LinearOptions(keep_features=0.6), TrainOptions(), None
        ).head  # as train --keep-features 0.6
        used.append(float(head.weight.any(axis=0).mean()))
        hits = (features[test] @ head.weight.T + head.bias).argmax(1) == labels[test]
        right.setdefault("keep_features 0.6 (group_l1 chooses, l2 weighs)", np.zeros(len(labels)))[test] = hits
        if n_views > 1:
            soft = smooth(y, n_classes=k, amount=0.1, task="classification")
            take("label smoothing", ridge(Problem(features=x, targets=soft)))
            mixed = mix(Supervision(x, y, None, None), n_classes=k, amount=0.4, copies=2, seed=held)
            take("mixup", ridge(Problem(features=mixed.features, targets=mixed.targets)))
            many = np.concatenate([view[train] for view in views])
            take("views", ridge(Problem(features=many, targets=np.tile(y, n_views))))
        shown = ", ".join(f"{head} {hits[test].mean():.4f}" for head, hits in right.items())
        say(f"  {name}, fold {held}: {shown}; features used {used[-1]:.2f}")
    results = []
    for head in [head for head in right if head != "l2"]:
        difference = right[head] - right["l2"]
        error = float(difference.std() / np.sqrt(len(difference)))
        results.append(
            {
                "data": f"{name}, five folds over {len(labels)} photos",
                "head": head,
                "accuracy": float(right[head].mean()),
                "accuracy_l2": float(right["l2"].mean()),
                "difference_points": 100 * float(difference.mean()),
                "interval_points": [100 * (float(difference.mean()) + sign * 1.96 * error) for sign in (-1, 1)],
                "features_used": float(np.mean(used)) if "keep" in head else 1.0,
                "bytes_ratio": 4.0 if head == "views" else 1.0,
                "only_this_right": int((difference > 0).sum()),
                "only_l2_right": int((difference < 0).sum()),
            }
        )
    return results


BENCHES = {
    "l2": bench_l2,
    "sweep": bench_sweep,
    "l1": bench_l1,
    "group": bench_group,
    "quality": bench_quality,
    "choice": bench_choice,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(BENCHES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, list[dict]] = {}
    for name, bench in BENCHES.items():
        if arguments.only in (None, name):
            say(f"{name}:")
            results[name] = bench(arguments.repeats)
            for row in results[name]:
                print(json.dumps({key: value for key, value in row.items() if not isinstance(value, list)}), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
