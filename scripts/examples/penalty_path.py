"""A penalty path, and what the certificate of each of its fits means.

    .venv/bin/python scripts/examples/penalty_path.py FOLDER            # all 1,797 digits
    .venv/bin/python scripts/examples/penalty_path.py FOLDER 300        # the first 300

A linear head minimises the mean cross-entropy of the train rows plus ``l1 · Σ|W|``: an L1-penalised logistic regression
of standardised features. A strong l1 leaves few weights that are not exactly zero, a weak one many; which is best is
not known before it is tried. ``LinearOptions(l1="auto")`` follows a path from strong to weak, each fit started at the
one before it, and chooses the penalty with the best accuracy on val.

The problem is convex, so the quality of a fit can be *proved*, without trusting the solver: any feasible point of the
dual problem gives a number that no head's objective can be below. The relative gap is the distance between the two:

    gap = (objective - lower bound) / objective

A gap of 1e-6 says: whatever else one might try, no head has an objective more than a millionth below this one's. It
says nothing about accuracy on new images; that is what val, and in the end test, are for.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from make_digits import write_digits

import featcache


def main(folder: Path, count: int | None = None) -> None:
    """Follow a path of L1 penalties on the first `count` digits and print each fit with its certificate."""
    write_digits(folder / "digits", count=count)
    featcache.build_cache(folder / "digits", folder / "cache")
    fitted = featcache.train_head(folder / "cache", head=featcache.LinearOptions(l1="auto"))

    print("       l1  objective    no head below      gap  non-zeros  features  val accuracy")
    for point in fitted.path:
        bound = point.objective * (1 - point.gap)
        print(
            f"{point.l1:9.2e}  {point.objective:9.6f}  {bound:15.6f}  {point.gap:7.0e}  {point.nonzero_fraction:9.1%}"
            f"  {point.features_used:8}  {point.value:12.1%}{'  chosen' if point.chosen else ''}"
        )
    # The zeros are exact: a feature whose weights are zero in every class need not be computed for this head.
    print(
        f"\n{fitted.features_used} of {fitted.num_features} features are used; test accuracy {fitted.test_accuracy:.1%}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
