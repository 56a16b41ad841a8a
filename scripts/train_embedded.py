"""Train featcache_nano, the embedded backbone, from ../shared; print what it is worth, install it.

    scripts/train_embedded.py means --home DIR [--only NAME,NAME]    each means alone in a short run: DIR/means.jsonl
    scripts/train_embedded.py train --home DIR [--until HH:MM]       the whole run; killed or stopped, it goes on
    scripts/train_embedded.py probe --home DIR [--weights FILE]      linear probes, printed and kept in DIR/probes.json
    scripts/train_embedded.py install --home DIR [--weights FILE]    featcache/backbone/weights/: weights, probes, card
    scripts/train_embedded.py card --home DIR                        of these the probes and the card alone

    scripts/train_embedded.py pack --pack DIR                        what a lent machine needs, at most 64 MiB
    scripts/train_embedded.py train --home DIR --pack DIR --device cuda --minutes 9

On processors the teachers answer four views of each photo once, and two processes train on these; on a GPU the teachers
answer each new crop on the spot. `--data`: where the image archives of ../shared are unpacked (default: below DIR).
Choices are made on tinyimagenet200's val and on 20 classes that the short runs never see. clothing10 takes no part in
the training: only its probe is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from embedded.live import LiveLessons
from embedded.look import features_of
from embedded.loop import Settings, Student, train
from embedded.means import MEANS, row_of, try_means
from embedded.pack import read_pack, write_pack
from embedded.photos import Photos, read_photos
from embedded.processes import rank
from embedded.school import School, lessons_of, new_student, open_school, scale_of
from embedded.teachers import TEACHERS
from torch import nn

import featcache
from featcache.backbone.checkpoint import read_checkpoint
from featcache.backbone.embedded import embedded_weights
from featcache.backbone.probes import PROBES, Probe, probes_file
from featcache.backbone.timm_import import import_timm
from featcache.distillation.student import stored_tensors, write_weights
from featcache.system.json import DocumentKind, read_document
from featcache.system.members import digest_file

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
IMAGES = "tinyimagenet200_40k"
STEPS = 7_500
# From 65 pixels on the last maps are 3x3, as they are in use, and not 2x2, which leave a 5x5 kernel's rim untaught.
SIDES = ((2_500, 48), (500, 64), (3_000, 72), (1_500, 96))
COURSE = Settings(
    whitened=0.5, relational=1.0, optimizer="muon", learning_rate=5e-3, batch=192, cutmix=0.25, hold=5_200 / STEPS,
    sides=tuple((steps / STEPS, side) for steps, side in SIDES),
)  # fmt: skip
OTHERS = {
    "random weights": (COURSE.network, "random:0"),
    **{name: (name, teacher.weights) for name, teacher in TEACHERS.items()},
    "mobilenetv2_100 (PyTorch's)": ("mobilenetv2_100", "mobilenetv2_100.torch_ptq"),
}  # label of a probe: timm's network, weights; the one labelled as its network speaks for the hub's weights, too
TEST_SIDE = TEST_RESIZE = 96  # whole photos: on val better than their middle, and than 80, 112 and 128 pixels
LEAST_DEVIATION = 1e-3  # of a feature: one that never fires stays as it is
POINTS = 20  # of the curve that the card shows
TRAINING = DocumentKind(
    "what the embedded backbone was trained with", "install featcache again", "install featcache again",
    "featcache-training", (1,), ("course", "curve", "means", "steps"),
)  # fmt: skip
MOST_BYTES, MOST_PARAMETERS = 3_600_000, 1_700_000
WANTED = {"clothing10": (0.70, 0.76), "digits": (0.975, 0.975), IMAGES: (0.45, 0.50)}


CARD = """# featcache_nano

The backbone that comes with featcache, so that a first command works without a model hub. A small network trained from
scratch by this project; with a hub within reach, a larger one (`--backbone mobilenetv2_100`) sees much better.

| | |
|---|---|
| architecture | `{network}` (`backbone/nano.py`): {parameters:,} parameters without classifier, {width} features |
| file | `featcache_nano.safetensors`, fp16, {size:,} bytes, with a digest of its content in the metadata |
| input | {side}x{side} RGB: short side resized to {resize} (bicubic), centre crop; mean and std 0.5 |

## Figures

Accuracy of a linear head (`featcache train --l2 auto`) on one plain view, from `probes.json` beside this card, which
`scripts/train_embedded.py probe` makes and `featcache backbones` shows. clothing10 took no part in the training.

| backbone | clothing10 test (372 images) | digits test | tinyimagenet200 val (2,000) |
|---|---|---|---|
{table}

Wanted were 0.70, 0.975 and 0.45, hoped for 0.76, 0.975 and 0.50. {verdict}

## Data, teachers, recipe

- Images: the 40,000 training images of tinyimagenet200_40k (200 classes of ImageNet, 64x64 pixels).
- Teachers: `mobilenetv2_100` (float weights of the original TensorFlow model) and `mobilenet_edgetpu_100` (MLPerf's
  quantization-aware weights), which see each view at 160 pixels: the whole photo and three crops of it, as they are or
  mirrored. On a GPU they answer every new crop instead.
- Loss: squared error against both teachers' features, each through a linear projection; 0.8·T²·KL at T = 2 to a linear
  head on both teachers; 0.2·cross entropy of the 200 labels. Projections and classifier were dropped.
- The student's views are also changed in brightness, contrast and saturation (0.25).
{course}

| views | pixels | loss |
|---|---|---|
{curve}

{views:,} views in all. A schedule for a network of this size is 100 million.

## Means

Each alone in a short run: {mean_views:,} views of 180 classes at 64 pixels, one thread each, beside another such run.
Distance: squared error of the teachers' features on val, 1 for a constant (only comparable where the targets are
scaled alike). Val: what the student's classifier knows of these classes' 1,800 photos. Unseen: ridge regression on the
features, 20 classes that the run never saw. These decide; clothing10 was looked at when the whole run had ended.

| means | distance | val, % | unseen, % | views/s |
|---|---|---|---|---|
{means}

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


def school_in(home: Path, data: Path) -> School:
    return open_school(unpacked(IMAGES, data), SHARED / "weights", home, say)


def in_processes(count: int) -> None:
    """Begin this program again in `count` processes of one thread each, on two cores faster than two threads."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    os.execv(sys.executable, [*command, *sys.argv])


def begun(student: Student, start: Path | None) -> Student:
    """Return the student, its network with the weights of a file where one is named: training goes on elsewhere."""
    if start is not None:
        tensors, _ = read_checkpoint(start)
        student.network.load_state_dict(tensors, strict=False)  # the counters of batch norm are not kept
    return student


def run_course(home: Path, data: Path, *, steps: int, until: float | None, start: Path | None) -> None:
    """Train on a processor, the teachers having answered; write HOME/course.safetensors in the end."""
    school = school_in(home, data)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        torch.set_num_threads(1)
    lessons = lessons_of(school, COURSE)
    student = begun(new_student(COURSE, lessons), start)
    student.load_state_dict(train(student, lessons, COURSE, steps, home / "course", say, until=until))
    if rank() == 0:
        finish(student, school.photos, home)


def run_packed(home: Path, pack: Path, *, steps: int, until: float | None, start: Path | None, device: str) -> None:
    """Train from a pack alone, the teachers answering on the spot; write HOME/course.safetensors in the end."""
    photos = read_pack(pack)
    teachers = [TEACHERS[name] for name in COURSE.teachers]
    networks = [one.build(pack) for one in teachers]
    lessons = LiveLessons(photos, teachers, networks, lambda features: scale_of(features, COURSE), device)
    student = begun(new_student(COURSE, lessons), start)
    averaged = train(student, lessons, COURSE, steps, home / "course", say, until=until, device=device)
    student.load_state_dict(averaged)
    finish(student.cpu(), photos, home)


def finish(student: Student, photos: Photos, home: Path) -> None:
    """Level the features over a twentieth of the photos and write the network."""
    level(student.network, Photos(photos.pixels[::20], photos.labels[::20], photos.classes))
    write_student(student, home / "course.safetensors")


def write_student(student: Student, place: Path) -> None:
    """Write the student's network alone, as fp16, which `load_backbone` reads."""
    preprocessing = {
        "height": TEST_SIDE, "width": TEST_SIDE, "resize": TEST_RESIZE, "interpolation": "bicubic",
        "crop_mode": "center", "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    metadata = {"timm_kwargs": {}, "mean": [0.5] * 3, "std": [0.5] * 3, "preprocessing": preprocessing,
                "course": dataclasses.asdict(COURSE)}  # fmt: skip
    told = {"timm_model": COURSE.network, **{name: json.dumps(value) for name, value in metadata.items()}}
    say(f"{place}: {write_weights(place, stored_tensors(student.network.state_dict()), told)} bytes")


def level(network: nn.Module, photos: Photos) -> None:
    """Scale the last convolution so that every feature has a deviation of 1 over `photos`, in place.

    Behind it stand ReLU and a mean alone, which a positive factor passes: a head gives the same answers with weights
    of one scale, which lose least when they are rounded to integers (Nagel et al. 2019, arXiv 1906.04721).
    """
    deviation = features_of(network, photos, TEST_SIDE).std(0)
    scale = torch.where(deviation > LEAST_DEVIATION, 1 / deviation, torch.ones(()))
    last = network.get_submodule("blocks")[-1][-1].bn1
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.mul_(scale)


def probe(weights: Path | str, backbone: str | None, data: Path, scratch: Path) -> dict[str, float]:
    """Return the accuracy of our head on one plain view: clothing10 test, digits test, tinyimagenet200 val."""
    found = {}
    sources = {"clothing10": unpacked("clothing10", data), "digits": digits(data), IMAGES: unpacked(IMAGES, data)}
    for name, images in sources.items():
        cache = scratch / name
        featcache.build_cache(images, cache, backbone=backbone, weights=weights)
        with featcache.open_cache(cache) as opened:
            result = featcache.train_head(opened, head=featcache.LinearOptions(l2="auto"))
        accuracy = result.val_accuracy if name == IMAGES else result.test_accuracy
        assert accuracy is not None
        found[name] = round(accuracy, 4)
        say(f"{weights}: {name} {accuracy:.4f}")
        shutil.rmtree(cache)
    return found


def probe_all(home: Path, data: Path, weights: Path, *, others: Sequence[str]) -> None:
    """Print and keep the probes of the student and of `others`, which are labels of `OTHERS`."""
    scratch = home / "probe"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    candidate = scratch / "featcache_nano.safetensors"
    shutil.copyfile(weights, candidate)
    runs = {"featcache_nano": (COURSE.network, str(candidate))} | {label: OTHERS[label] for label in others}
    for label, (network, source) in runs.items():
        place = source if label == "featcache_nano" or source.startswith("random:") else weights_of(source)
        accuracy = probe(place, network, data, scratch)
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


def install(weights: Path) -> None:
    """Write the student into the package."""
    place = embedded_weights()
    read_checkpoint(weights)  # its digest holds
    shutil.copyfile(weights, place)
    size = place.stat().st_size
    parameters = sum(p.numel() for p in featcache.load_backbone("featcache_nano").parameters())
    if size > MOST_BYTES or parameters > MOST_PARAMETERS:
        raise SystemExit(f"too large: {size} bytes, {parameters} parameters")
    say(f"{place}: {size} bytes, {parameters} parameters")


def keep_training(home: Path) -> None:
    """Put what was run into the package, for the card: the course, its curve, the table of the means."""
    curve = [json.loads(line) for line in (home / "course" / "curve.jsonl").read_text().splitlines()]
    every = max(1, len(curve) // POINTS)
    means = home / "means.jsonl"
    training = {
        "format": TRAINING.format, "version": 1, "course": dataclasses.asdict(COURSE), "steps": curve[-1]["step"],
        "curve": [[one["step"] * COURSE.batch, one["side"], one["loss"]] for one in curve[::-1][::every][::-1]],
        "means": [json.loads(line) for line in means.read_text().splitlines()] if means.exists() else [],
    }  # fmt: skip
    training_file().write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")


def training_file() -> Path:
    return embedded_weights().with_name("training.json")


def install_probes(probes: Path) -> None:
    """Write the table of probes into the package, and the card made from it."""
    listed = [Probe(**entry) for entry in read_document(probes, PROBES)["probes"]]
    mine = next(one for one in listed if one.name == "featcache_nano")
    if mine.sha256 != digest_file(embedded_weights()):
        raise SystemExit(f"the probe in {probes} is of other weights than {embedded_weights()}: probe these")
    shutil.copyfile(probes, probes_file())
    training = read_document(training_file(), TRAINING)
    embedded_weights().with_suffix(".md").write_text(card(listed, training), encoding="utf-8")


def card(probes: Sequence[Probe], training: Mapping[str, Any]) -> str:
    """Return the card of the embedded backbone: the figures of `probes`, and what `training.json` says was run."""
    backbone = featcache.load_backbone("featcache_nano")
    mine = next(one for one in probes if one.name == "featcache_nano")
    missed = [
        f"{name} misses it by {least - mine.accuracy[name]:.3f}"
        for name, (least, _) in WANTED.items()
        if mine.accuracy[name] < least
    ]
    return CARD.format(
        size=mine.bytes, parameters=mine.parameters, side=mine.height, network=mine.network,
        resize=backbone.preprocessing.resize, width=mine.num_features,
        table="\n".join(row(one) for one in probes),
        verdict=("It is undertrained: " + "; ".join(missed) + ".") if missed else "All wanted figures are reached.",
        views=training["steps"] * training["course"]["batch"], course=course_in_words(training),
        curve="\n".join(f"| {views:,} | {side} | {loss:.3f} |" for views, side, loss in training["curve"]),
        means="\n".join(row_of(one) for one in training["means"]),
        mean_views=training["means"][0]["views"] if training["means"] else 0,
    )  # fmt: skip


def course_in_words(training: Mapping[str, Any]) -> str:
    """Return the settings of the whole run as list items of the card."""
    course = training["course"]
    sides = ", then ".join(f"{side} pixels for {100 * share:.0f} %" for share, side in course["sides"])
    scaled = "standardised" if course["whitened"] is None else f"whitened to the power {course['whitened']:g}"
    return (
        f"- {training['steps']:,} steps of {course['batch']} views: {sides}.\n"
        f"- Targets {scaled}; relational loss weighed {course['relational']:g}; cut-mix in "
        f"{100 * course['cutmix']:.0f} % of the batches.\n"
        f"- {course['optimizer']}, learning rate {course['learning_rate']:g} until {100 * course['hold']:.0f} % of the "
        f"steps, then falling; weight decay {course['weight_decay']:g}; weights averaged ({course['average']:g})."
    )


def row(probed: Probe) -> str:
    """Return one line of the card's table."""
    cells = [f"{probed.accuracy[name]:.3f}" for name in WANTED]
    return f"| {probed.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["means", "train", "pack", "probe", "install", "card"])
    parser.add_argument("--home", type=Path, required=True, help="answers, checkpoints and figures")
    parser.add_argument("--data", type=Path, help="unpacked image folders; default HOME/data")
    parser.add_argument("--only", default=",".join(MEANS), help="the means to try; default: all")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the whole run; may grow until the rate falls")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that train together; default: all")
    parser.add_argument("--until", help="HH:MM at which to stop, to go on later")
    parser.add_argument("--minutes", type=float, help="after which to stop, to go on later")
    parser.add_argument("--start", type=Path, help="a student's file to begin with; default: random weights")
    parser.add_argument("--pack", type=Path, help="a folder to pack into, or to train from")
    parser.add_argument("--quality", type=int, default=50, help="of the packed photos (WebP)")
    parser.add_argument("--device", default="cuda", help="of a run from a pack")
    parser.add_argument("--weights", type=Path, help="a student's file; default HOME/course.safetensors")
    parser.add_argument("--others", default="", help=f"probe these too, or all: {', '.join(OTHERS)}")
    args = parser.parse_args()
    data = args.data or args.home / "data"
    weights = args.weights or args.home / "course.safetensors"
    until = stop_at(args.until, args.minutes)
    if args.what == "means":
        torch.set_num_threads(1)  # the table's figures: start two at once, each with its own --only
        try_means(school_in(args.home, data), args.home, args.only.split(","), say)
    elif args.what == "pack":
        photos = read_photos(unpacked(IMAGES, data) / "train", args.home / "train.npz")
        teachers = [TEACHERS[name] for name in COURSE.teachers]
        size = write_pack(photos, teachers, SHARED / "weights", args.pack, quality=args.quality)
        say(f"{args.pack}: {size:,} bytes")
    elif args.what == "train" and args.pack:
        run_packed(args.home, args.pack, steps=args.steps, until=until, start=args.start, device=args.device)
    elif args.what == "train" and args.processes > 1 and "RANK" not in os.environ:
        school_in(args.home, data)  # whose teachers answer with all cores, before there are several processes
        in_processes(args.processes)
    elif args.what == "train":
        run_course(args.home, data, steps=args.steps, until=until, start=args.start)
    elif args.what == "probe":
        others = list(OTHERS) if args.others == "all" else [name for name in args.others.split(",") if name]
        probe_all(args.home, data, weights, others=others)
    else:
        if args.what == "install":
            install(weights)
            keep_training(args.home)
        install_probes(args.home / "probes.json")


def stop_at(clock: str | None, minutes: float | None) -> float | None:
    """Return the time in seconds since 1970 that ``--until`` or ``--minutes`` means."""
    if minutes is not None:
        return time.time() + 60 * minutes
    if clock is None:
        return None
    hour, minute = (int(part) for part in clock.split(":"))
    now = time.localtime()
    ahead = (hour * 60 + minute - now.tm_hour * 60 - now.tm_min) % (24 * 60)
    return time.time() - now.tm_sec + 60 * ahead


if __name__ == "__main__":
    main()
