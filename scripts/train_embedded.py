"""Train featcache_nano, the embedded backbone, from ../shared; or go on with it, print what it is worth, install it.

    scripts/train_embedded.py train --home DIR [--until HH:MM]     caches, then the stages; killed, it goes on
    scripts/train_embedded.py probe --home DIR [--weights FILE]    linear probes, printed and kept in DIR/probes.json
    scripts/train_embedded.py install --home DIR [--weights FILE]  featcache/backbone/weights/: weights, probes, card
    scripts/train_embedded.py card --home DIR                      of these the probes and the card alone

`--data`: where the image archives of ../shared are unpacked (default: below DIR). Teachers answer once. `--improve`
runs the last stage alone and begins with the weights in the package, so that training can go on from machine to
machine.
clothing10 takes no part in the training: only its probe is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import featcache
from featcache.backbone.checkpoint import read_checkpoint
from featcache.backbone.embedded import embedded_weights
from featcache.backbone.probes import PROBES, Probe, probes_file
from featcache.backbone.timm_import import import_timm
from featcache.distillation import distill
from featcache.distillation.student import write_weights
from featcache.system.json import read_document
from featcache.system.members import digest_file

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
STUDENT = "mobilenetv3_small_100"
IMAGES = "tinyimagenet200_40k"
TEACHERS = {
    "mobilenetv2_100": ("mobilenetv2_100.tf_float_headless", ("features",)),
    "mobilenet_edgetpu_100": ("mobilenet_edgetpu_100.mlperf_qat", ("features", "logits")),
}
OTHERS = {
    "random weights": (STUDENT, "random:0"),
    **{name: (name, weights) for name, (weights, _) in TEACHERS.items()},
    "mobilenetv2_100 (PyTorch's)": ("mobilenetv2_100", "mobilenetv2_100.torch_ptq"),
}  # label of a probe: timm's network, weights; the one labelled as its network speaks for the hub's weights, too
VIEWS = 4


@dataclass(frozen=True)
class Stage:
    """One run of `distill`, which begins with the weights of the one before.

    `soft`: soft labels are ImageNet's, from a teacher's logits, or the images' own, from a head on the first teacher.
    """

    name: str
    side: int
    epochs: int
    learning_rate: float
    teachers: tuple[str, ...]
    soft: Literal["logits", "head"]
    feature_weight: float


STAGES = (
    Stage("small", 64, 32, 2e-3, ("mobilenetv2_100", "mobilenet_edgetpu_100"), "logits", 1.0),
    Stage("large", 96, 30, 2e-3, ("mobilenetv2_100",), "head", 3.0),
)
SETTINGS: dict[str, Any] = {"alpha": 0.8, "jitter": 0.25, "temperature": 2.0, "batch_size": 128, "classifier": False}
TEST_SIDE = 96
MOST_BYTES, MOST_PARAMETERS = 3_600_000, 1_700_000
WANTED = {"clothing10": (0.60, 0.72), "digits": (0.96, 0.96), IMAGES: (0.33, 0.42)}


CARD = """# featcache_nano

The backbone that comes with featcache, so that a first command works without a model hub. A small network trained from
scratch by this project; with a hub within reach, a larger one (`--backbone mobilenetv2_100`) sees much better.

| | |
|---|---|
| architecture | timm `mobilenetv3_small_100` without classifier: {parameters:,} parameters, {width} features |
| file | `featcache_nano.safetensors`, fp16, {size:,} bytes, with a digest of its content in the metadata |
| input | {side}x{side} RGB: short side resized to {resize} (bicubic), centre crop; mean and std 0.5 |

## Figures

Accuracy of a linear head (`featcache train --l2 auto`) on one plain view, from `probes.json` beside this card, which
`scripts/train_embedded.py probe` makes and `featcache backbones` shows. clothing10 took no part in the training.

| backbone | clothing10 test (372 images) | digits test | tinyimagenet200 val (2,000) |
|---|---|---|---|
{table}

Wanted were 0.60, 0.96 and 0.33, hoped for 0.72, 0.96 and 0.42. {verdict}

## Data, teachers, recipe

- Images: the 40,000 training images of tinyimagenet200_40k (200 classes of ImageNet, 64x64 pixels).
- Teachers: `mobilenetv2_100` (float weights of the original TensorFlow model; features) and `mobilenet_edgetpu_100`
  (MLPerf's quantization-aware weights; features and ImageNet logits). Each answered once for the plain view and three
  augmented ones of every image, into a featcache cache.
- Loss: squared error against the teachers' standardised features, each through a linear projection (weighed as below);
  0.8·T²·KL at T = 2 to the teacher's six largest probabilities and "any other" (of ImageNet's classes from
  `mobilenet_edgetpu_100`, or of the images' 200 from a linear head on `mobilenetv2_100`, as below); 0.2·cross entropy
  of the 200 labels. Projections and classifiers were dropped.
- AdamW, batches of 128, weight decay 0.02, weights averaged (0.999); the student's views replay the teachers' crops,
  then contrast, brightness, sharpness (0.25) and side are drawn. The learning rate falls over the last 30 % of a stage.
{history}

## Limits

It has seen small photos of objects and animals only, in few passes. It knows nothing of text, faces, medical or aerial
images. It inherits the biases of ImageNet's labels and of both teachers. Use it to try things out and where nothing
larger can be had.

## Licence

Apache-2.0, as the project. The teachers' weights are Apache-2.0 (TensorFlow's MobileNetV2; MLCommons' mobile models).
tinyimagenet200's photos come from ImageNet, whose terms allow research and education; no photo can be had back from
these weights, and whether ImageNet's terms reach them is not settled: decide for yourself before a commercial use.
"""


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def unpacked(name: str, data: Path) -> Path:
    """Return the image folder `name` below `data`, unpacked from ../shared where it is not there."""
    place = data / name
    if not place.exists():
        archive = next((SHARED / "datasets").glob(f"{name}.tar*"))
        data.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(data, filter="data")
    return place


def digits(data: Path) -> Path:
    """Return the digits as an image folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from make_digits import write_digits

    write_digits(data / "digits")
    return data / "digits"


def teacher_cache(backbone: str, images: Path, home: Path) -> Path:
    """Return the cache of a teacher's answers, built (or finished) where it is not whole."""
    weights, outputs = TEACHERS[backbone]
    cache = home / f"teacher-{backbone}"
    featcache.build_cache(
        images, cache, backbone=backbone, weights=SHARED / "weights" / f"{weights}.safetensors",
        outputs=outputs, views=VIEWS,
    )  # fmt: skip
    return cache


def head_of(cache: Path, home: Path) -> Path:
    """Return a head over the images' own classes on the plain view of `cache`, trained where there is none."""
    place = home / f"{cache.name}.head"
    if not place.exists():
        with featcache.open_cache(cache) as opened:
            featcache.train_head(opened, head=featcache.LinearOptions(l2="auto")).save(place)
    return place


def train(home: Path, data: Path, stages: Sequence[Stage], *, epochs: int | None, start: Path | None) -> None:
    """Build the teachers' caches and run the stages, each from where it was; the first begins with `start`."""
    images = unpacked(IMAGES, data)
    for stage in stages:
        out = home / f"{stage.name}.safetensors"
        caches = [teacher_cache(backbone, images, home) for backbone in stage.teachers]
        report = distill(
            images, caches, student=STUDENT, out=out, input_size=stage.side, learning_rate=stage.learning_rate,
            teacher_head=head_of(caches[0], home) if stage.soft == "head" else None,
            feature_weight=stage.feature_weight, epochs=epochs if stage is stages[-1] and epochs else stage.epochs,
            views=VIEWS, start=start, keep_work=True, overwrite=True, say=say, **SETTINGS,
        )  # fmt: skip
        say(f"{stage.name}: {report.to_json()}")
        start = Path(f"{out}.work")


def probe(
    weights: Path | str, backbone: str | None, data: Path, scratch: Path, answered: Path | None = None
) -> dict[str, float]:
    """Return the accuracy of our head on one plain view: clothing10 test, digits test, tinyimagenet200 val.

    `answered`: a cache of the training images by this very network, where there is one.
    """
    found = {}
    sources = {"clothing10": unpacked("clothing10", data), "digits": digits(data), IMAGES: unpacked(IMAGES, data)}
    for name, images in sources.items():
        cache = scratch / name
        if name == IMAGES and answered is not None and answered.exists():
            cache = answered
        else:
            featcache.build_cache(images, cache, backbone=backbone, weights=weights)
        with featcache.open_cache(cache) as opened:
            result = featcache.train_head(opened, head=featcache.LinearOptions(l2="auto"))
        accuracy = result.val_accuracy if name == IMAGES else result.test_accuracy
        assert accuracy is not None
        found[name] = round(accuracy, 4)
        say(f"{weights}: {name} {accuracy:.4f}")
        if cache != answered:
            shutil.rmtree(cache)
    return found


def probe_all(home: Path, data: Path, weights: Path, *, others: Sequence[str]) -> None:
    """Print and keep the probes of the student and of `others`, which are labels of `OTHERS`."""
    scratch = home / "probe"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    candidate = scratch / "featcache_nano.safetensors"
    write_at_test_side(weights, candidate)
    runs = {"featcache_nano": (STUDENT, str(candidate))} | {label: OTHERS[label] for label in others}
    for label, (network, source) in runs.items():
        place = source if label == "featcache_nano" or source.startswith("random:") else weights_of(source)
        accuracy = probe(place, network, data, scratch, home / f"teacher-{label}")
        keep_probe(home / "probes.json", describe(label, network, place, accuracy))
    print((home / "probes.json").read_text(encoding="utf-8"))


def weights_of(name: str) -> Path:
    return SHARED / "weights" / f"{name}.safetensors"


def describe(label: str, network: str, weights: Path | str, accuracy: dict[str, float]) -> Probe:
    """Return the probe of a network with the weights in a file, or ``random:SEED``."""
    backbone = featcache.load_backbone(network, weights=weights)
    settings = import_timm().get_pretrained_cfg(network)
    hub = settings.hf_hub_id if label == network else None
    path = None if str(weights).startswith("random:") else Path(weights)
    return Probe(
        name=label, network=network, weights=str(weights) if path is None else path.name,
        bytes=0 if path is None else path.stat().st_size, sha256=None if path is None else digest_file(path),
        parameters=sum(parameter.numel() for parameter in backbone.parameters()), num_features=backbone.num_features,
        height=backbone.preprocessing.height, width=backbone.preprocessing.width, classifier=settings.classifier,
        hub=hub, tag=None if hub is None else settings.tag,
        accuracy=accuracy,
    )  # fmt: skip


def keep_probe(place: Path, probed: Probe) -> None:
    """Put a probe into the table in the file `place`, in the place of an older one of that name."""
    listed = read_document(place, PROBES)["probes"] if place.exists() else []
    names = [entry["name"] for entry in listed]
    position = names.index(probed.name) if probed.name in names else len(listed)
    listed[position : position + 1] = [dataclasses.asdict(probed)]
    place.write_text(json.dumps({"format": PROBES.format, "version": 1, "probes": listed}, indent=1) + "\n")


def write_at_test_side(weights: Path, place: Path) -> int:
    """Write a student to `place` with the input it is best used at, larger than the crops it learned from.

    Crops show things larger than whole photos do; a larger input makes up for it (Touvron et al. 2019, arXiv
    1906.06423). Returns the file's bytes.
    """
    tensors, metadata = read_checkpoint(weights)
    look = {
        **metadata["preprocessing"], "height": TEST_SIDE, "width": TEST_SIDE, "resize": round(TEST_SIDE * 256 / 224),
    }  # fmt: skip
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    told = {**told, "preprocessing": json.dumps(look)}
    told.pop("digest", None)
    return write_weights(place, tensors, told)


def install(weights: Path) -> None:
    """Write the student into the package with the input it is best used at."""
    place = embedded_weights()
    place.parent.mkdir(exist_ok=True)
    size = write_at_test_side(weights, place)
    parameters = sum(p.numel() for p in featcache.load_backbone("featcache_nano").parameters())
    if size > MOST_BYTES or parameters > MOST_PARAMETERS:
        raise SystemExit(f"too large: {size} bytes, {parameters} parameters")
    say(f"{place}: {size} bytes, {parameters} parameters")


def install_probes(probes: Path, history: str) -> None:
    """Write the table of probes into the package, and the card made from it."""
    listed = [Probe(**entry) for entry in read_document(probes, PROBES)["probes"]]
    mine = next(one for one in listed if one.name == "featcache_nano")
    if mine.sha256 != digest_file(embedded_weights()):
        raise SystemExit(f"the probe in {probes} is of other weights than {embedded_weights()}: probe these")
    shutil.copyfile(probes, probes_file())
    embedded_weights().with_suffix(".md").write_text(card(listed, history), encoding="utf-8")


def card(probes: Sequence[Probe], history: str) -> str:
    """Return the card of the embedded backbone, whose figures are those of `probes`."""
    backbone = featcache.load_backbone("featcache_nano")
    mine = next(one for one in probes if one.name == "featcache_nano")
    missed = [
        f"{name} misses it by {least - mine.accuracy[name]:.3f}"
        for name, (least, _) in WANTED.items()
        if mine.accuracy[name] < least
    ]
    return CARD.format(
        size=mine.bytes, parameters=mine.parameters, side=mine.height,
        resize=backbone.preprocessing.resize, width=mine.num_features,
        table="\n".join(row(one) for one in probes),
        verdict=("It is undertrained: " + "; ".join(missed) + ".") if missed else "All wanted figures are reached.",
        history=history,
    )  # fmt: skip


def stages_in_words() -> str:
    """Return the stages as list items of the card."""
    labels = {"logits": "ImageNet's soft labels", "head": "soft labels of the images' own classes"}
    return "\n".join(
        f"- Stage {number}: {stage.epochs} passes at {stage.side} pixels, learning rate {stage.learning_rate:g}; "
        f"features of {' and '.join(stage.teachers)} weighed {stage.feature_weight:g}, {labels[stage.soft]}."
        for number, stage in enumerate(STAGES, start=1)
    )


def row(probed: Probe) -> str:
    """Return one line of the card's table."""
    cells = [f"{probed.accuracy[name]:.3f}" for name in WANTED]
    return f"| {probed.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "probe", "install", "card"])
    parser.add_argument("--home", type=Path, required=True, help="caches, checkpoints and figures")
    parser.add_argument("--data", type=Path, help="unpacked image folders; default HOME/data")
    parser.add_argument("--weights", type=Path, help="a student's file; default that of the last stage")
    parser.add_argument("--epochs", type=int, help="of the last stage; may grow when going on")
    parser.add_argument("--improve", action="store_true", help="the last stage only, from the package's weights")
    parser.add_argument("--others", default="", help=f"probe these too, or all: {', '.join(OTHERS)}")
    args = parser.parse_args()
    data = args.data or args.home / "data"
    weights = args.weights or args.home / f"{STAGES[-1].name}.safetensors"
    if args.what == "train":
        stages = STAGES[-1:] if args.improve else STAGES
        train(args.home, data, stages, epochs=args.epochs, start=embedded_weights() if args.improve else None)
    elif args.what == "probe":
        others = list(OTHERS) if args.others == "all" else [name for name in args.others.split(",") if name]
        probe_all(args.home, data, weights, others=others)
    else:
        if args.what == "install":
            install(weights)
        history = args.home / "history.md"  # what was run, as list items
        said = history.read_text(encoding="utf-8").rstrip("\n") if history.exists() else stages_in_words()
        install_probes(args.home / "probes.json", said)


if __name__ == "__main__":
    main()
