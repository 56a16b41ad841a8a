"""The main job on scikit-learn's handwritten digits, step by step, through the Python API.

    .venv/bin/python scripts/examples/main_job.py FOLDER            # all 1,797 digits
    .venv/bin/python scripts/examples/main_job.py FOLDER 300        # the first 300

FOLDER gets the images, the cache, a head, three models and a bundle. ``featcache run`` does all of it in one call.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from make_digits import write_digits

import featcache


def main(folder: Path, count: int | None = None) -> None:
    """Do the job in `folder`, on the first `count` digits, and print what each step returned."""
    images, cache_path = folder / "digits", folder / "cache"
    write_digits(images, count=count)

    # Images → features. The backbone runs once; calling this again would read no image at all.
    built = featcache.build_cache(images, cache_path)
    print(f"cache: {built.rows} rows of {built.num_features} features")

    with featcache.open_cache(cache_path) as cache:
        # Features → head. Fitted on train; the penalty is chosen on val; test is only reported.
        fitted = featcache.train_head(cache)
        print(f"head: l2 {fitted.l2:.3g}, val {fitted.val_accuracy:.1%}, test {fitted.test_accuracy:.1%}")
        featcache.save_head(fitted.head, folder / "head")

        # Head → merged: preprocessing, backbone and head are one model from here on.
        featcache.merge(featcache.load_head(folder / "head"), cache, out=folder / "model")

    # Merged → small. Each step changes the features, so each refits the head on the new ones.
    pruned = featcache.prune(folder / "model", cache=cache_path, out=folder / "pruned", amount=0.1)
    int8 = featcache.quantize(folder / "pruned", cache=cache_path, out=folder / "int8")
    for name, step in (("pruned", pruned), ("INT8", int8)):
        print(
            f"{name}: {step.bytes_before / 1e6:.1f} → {step.bytes_after / 1e6:.1f} MB; on {step.n} images of "
            f"{step.split}: before {step.accuracy_float:.1%}, with the old head {step.accuracy_before_refit:.1%}, "
            f"refitted {step.accuracy_after_refit:.1%}"
        )

    # Small → exported. The very files of the bundle are run, compared with the model and measured; files that answer
    # otherwise than the model leave no bundle.
    report = featcache.export(folder / "int8", out=folder / "bundle", cache=cache_path)
    print(f"bundle: {report.formats['onnx'].bytes / 1e6:.1f} MB of ONNX, verified on {report.verified_on}")

    # The bundle alone is enough to predict: no torch, no backbone, no cache.
    evaluation = featcache.evaluate(folder / "bundle", images, split=None)
    (prediction,) = featcache.predict(folder / "bundle", images / "3" / "0003.png")
    print(f"evaluate: {evaluation.accuracy:.1%} of {evaluation.n}; 3/0003.png is a {prediction.label}")
    print("verify:", "every byte is as it was written" if featcache.verify(folder / "bundle").ok else "damaged")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
