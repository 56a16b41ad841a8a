"""Train featcache_nano, the embedded backbone, from ../shared; print what it is worth, install it.

    scripts/train_embedded.py thin --home DIR                        the first weights: DIR/thinned.safetensors
    scripts/train_embedded.py means --home DIR [--only "NAME;NAME"]   each means alone in a short run: DIR/means.jsonl
    scripts/train_embedded.py train --home DIR [--until HH:MM]       the whole run; killed or stopped, it goes on
    scripts/train_embedded.py probe --home DIR [--weights FILE]      linear probes, printed and kept in DIR/probes.json
    scripts/train_embedded.py install --home DIR [--weights FILE]    featcache/backbone/weights/: weights, probes, card
    scripts/train_embedded.py card --home DIR                        of these the probes and the card alone

    scripts/train_embedded.py pack --pack DIR                        what a lent machine needs, at most 64 MiB
    scripts/train_embedded.py train --home DIR --pack DIR --device cuda --minutes 9

The student begins as one of its teachers, narrowed by `featcache prune`. On processors the teachers answer four views
of each photo once, and two processes train on these; on a GPU the teachers answer each new crop on the spot. `--data`:
where the image archives of ../shared are unpacked (default: below DIR). Choices are made on tinyimagenet200's val and
on 20 classes that the short runs never see. clothing10 takes no part in the training: only its probe is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tarfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from embedded.glyphs import CHARACTERS
from embedded.live import LiveLessons
from embedded.loop import Lessons, Settings, train
from embedded.means import MEANS, row_of, settings_of, try_means
from embedded.pack import read_pack, write_pack
from embedded.photos import read_photos
from embedded.processes import rank, together
from embedded.school import School, lessons_of, new_student, open_school, scale_of
from embedded.teachers import TEACHERS
from embedded.thin import CUTS, PER_CLASS, file_words, thinned
from safetensors.torch import load_file
from torch import Tensor

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
STEPS = 2_500
TEST_SIDE = 128  # pixels of whole photos
BEGIN = "thinned.safetensors"
COURSE = Settings(
    begins=BEGIN, frozen_norms=True, teachers=("mobilenetv2_100",), whitened=0.5, learning_rate=4e-4, batch=96,
    hold=0.4, sides=((1.0, TEST_SIDE),),
)  # fmt: skip
# Then, from what that came to, with characters drawn beside the photos.
LAST_STEPS = 1_100
LAST = dataclasses.replace(COURSE, begins="course.safetensors", batch=72, warmup=30, hold=0.3, glyphs=24)
PARTS = {"course": (COURSE, STEPS), "last": (LAST, LAST_STEPS)}  # each writes HOME/NAME.safetensors
RESULT = f"{list(PARTS)[-1]}.safetensors"
OTHERS = {
    "random weights": (COURSE.network, "random:0"),
    **{teacher.network: (teacher.network, teacher.weights) for teacher in TEACHERS.values()},
    "mobilenetv2_100 (PyTorch's)": ("mobilenetv2_100", "mobilenetv2_100.torch_ptq"),
}  # label of a probe: timm's network, weights; the one labelled as its network speaks for the hub's weights, too
CUT_WORDS = {"macs": "MACs", "parameters": "parameters"}
POINTS = 20  # of the curve that the card shows
TRAINING = DocumentKind(
    "what the embedded backbone was trained with", "install featcache again", "install featcache again",
    "featcache-training", (1,), ("curve", "means", "moved", "parts"),
)  # fmt: skip
MOST_BYTES, MOST_PARAMETERS = 3_600_000, 1_700_000
WANTED = {"clothing10": (0.70, 0.76), "digits": (0.975, 0.975), IMAGES: (0.45, 0.50)}


CARD = """# featcache_nano

The backbone that comes with featcache, so that a first command works without a model hub: MobileNetV2, narrowed by
`featcache prune` to {share:.0f} % of its parameters and trained on by this project for small photos and line drawings.
With a hub within reach, a larger one (`--backbone mobilenetv2_100`) sees better still.

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
- First weights: `mobilenetv2_100` (float weights of the original TensorFlow model, trained on ImageNet), of which
  `featcache prune` took {cuts},
  solving the layers that stay, by {sample}.
  Training has moved the convolutions' weights by {moved:.0f} % of their norm since: it is
  MobileNetV2's offspring, not a network from scratch.
- Teachers: {teachers}, seeing each view at 160 pixels: the whole photo and three crops of it, as they
  are or mirrored. On a GPU they answer every new crop instead.
- Loss: squared error against the teachers' features, each through a linear projection, solved before the first step;
  {soft:g}·T²·KL at T = {temperature:g} to a linear head on the teachers; {hard:g}·cross entropy of the 200 labels.
  Projections and classifier were dropped.
- The student's views are also changed in brightness, contrast and saturation ({recolour:g}). The characters are of an
  alphabet of {characters} that the project draws itself (`scripts/embedded/glyphs.py`): what photos do not show, lines.
{course}

| views | pixels | loss |
|---|---|---|
{curve}

{views:,} views of photos in all. A schedule for a network of this size is 100 million.

## Means

Each alone in a short run: 180 classes at 64 pixels, one thread each, beside another such run (on more than one machine:
views/s compare among neighbours at most). The first rows are of MobileNetV4-conv-small without its last layer
(`scripts/embedded/networks.py`), from drawn weights, two teachers, where nothing else is said; those named "begun" of
MobileNetV2 narrowed, with its weights, which it teaches alone. Distance: squared error of the teachers' features on
val, 1 for a constant (only comparable where the targets are scaled alike). Val: what the student's classifier knows of
these classes' 1,800 photos. Unseen: ridge regression on the features, 1,000 photos of 20 classes that the run never
saw, so one standard error is 1.5 points. These decide; clothing10 was looked at when the whole run had ended. What
begins with MobileNetV2's weights has met all of ImageNet's classes: its figures compare with each other alone.

| means | views | distance | val, % | unseen, % | views/s |
|---|---|---|---|---|---|
{means}

## Limits

Beyond what its first weights have seen (ImageNet) it was trained on small photos of objects and animals only. It knows
nothing of text, faces, medical or aerial images. It inherits the biases of ImageNet's labels and of its teachers. Use
it to try things out and where nothing larger can be had.

## Licence

Apache-2.0, as the project. Its first weights and its teacher are TensorFlow's MobileNetV2 (Apache-2.0, the TensorFlow
Authors), changed as said above. tinyimagenet200's photos come from ImageNet, whose terms allow research and education;
no photo can be had back from these weights, and whether ImageNet's terms reach them is not settled: decide for yourself
before a commercial use.
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


def school_in(home: Path, data: Path, teachers: Sequence[str] = COURSE.teachers) -> School:
    return open_school(unpacked(IMAGES, data), SHARED / "weights", home, teachers, say)


def in_processes(count: int) -> None:
    """Begin this program again in `count` processes of one thread each, on two cores faster than two threads."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    os.execv(sys.executable, [*command, *sys.argv])


def begin(home: Path, data: Path) -> Path:
    """Return the file of the student's first weights in `home`, made where it is not there."""
    place = home / BEGIN
    if not place.exists():
        images = unpacked(IMAGES, data)
        photos, val = read_photos(images / "train", home / "train.npz"), read_photos(images / "val", home / "val.npz")
        teacher = TEACHERS["mobilenetv2_100"]
        tensors = thinned(teacher, SHARED / "weights", photos, val, COURSE.network, TEST_SIDE, home / "thin", say)
        write_network(tensors, place)
    return place


def run_parts(home: Path, lessons: Lessons, *, steps: int | None, until: float | None, device: str = "cpu") -> None:
    """Train through `PARTS`, those that are done left out; write HOME/NAME.safetensors at the end of each."""
    for name, (settings, planned) in PARTS.items():
        place = home / f"{name}.safetensors"
        if place.exists():
            continue
        student = new_student(settings, lessons, home, home / name)
        averaged = train(student, lessons, settings, steps or planned, home / name, say, until=until, device=device)
        if averaged is None:
            return
        student.load_state_dict(averaged)
        if rank() == 0:
            write_network(student.cpu().network.state_dict(), place, course=dataclasses.asdict(settings))
        together()


def run_kept(home: Path, data: Path, *, steps: int | None, until: float | None) -> None:
    """Train on a processor, the teachers having answered."""
    school = school_in(home, data)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        torch.set_num_threads(1)
    run_parts(home, lessons_of(school, COURSE), steps=steps, until=until)


def run_packed(home: Path, pack: Path, *, steps: int | None, until: float | None, device: str) -> None:
    """Train from a pack alone, the teachers answering on the spot."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pack / BEGIN, home / BEGIN)
    photos = read_pack(pack)
    teachers = [TEACHERS[name] for name in COURSE.teachers]
    networks = [one.build(pack) for one in teachers]
    lessons = LiveLessons(photos, teachers, networks, lambda features: scale_of(features, COURSE), device)
    run_parts(home, lessons, steps=steps, until=until, device=device)


def write_network(tensors: Mapping[str, Tensor], place: Path, **more: Any) -> None:
    """Write the tensors of the student's network, as fp16, in a file that `load_backbone` reads; `more`: metadata."""
    told = file_words(COURSE.network, TEST_SIDE, timm_kwargs={}, **more)
    say(f"{place}: {write_weights(place, stored_tensors(tensors), told)} bytes")


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
    """Put what was run into the package, for the card: the parts of the run, its curve, the table of the means."""
    parts, curve, views = [], [], 0
    for name, (settings, _) in PARTS.items():
        lines = [json.loads(line) for line in (home / name / "curve.jsonl").read_text().splitlines()]
        curve += [[views + one["step"] * settings.batch, one["side"], one["loss"]] for one in lines]
        parts.append({"steps": lines[-1]["step"], "settings": dataclasses.asdict(settings)})
        views = curve[-1][0]
    every = max(1, len(curve) // POINTS)
    means = home / "means.jsonl"
    tried = [json.loads(line) for line in means.read_text().splitlines()] if means.exists() else []
    training = {
        "format": TRAINING.format, "version": 1, "parts": parts, "curve": curve[::-1][::every][::-1],
        "moved": moved(home / BEGIN, embedded_weights()),
        "means": sorted(tried, key=lambda one: list(MEANS).index(one["name"])),
    }  # fmt: skip
    training_file().write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")


def moved(before: Path, after: Path) -> float:
    """Return how far the convolutions of a file are from those of another, as a share of their norm."""
    first, last = load_file(before), load_file(after)
    names = [name for name, tensor in first.items() if tensor.ndim == 4]
    apart = sum(float((last[name].float() - first[name].float()).square().sum()) for name in names)
    return (apart / sum(float(first[name].float().square().sum()) for name in names)) ** 0.5


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
        views=training["curve"][-1][0], course="\n".join(part_in_words(**one) for one in training["parts"]),
        curve="\n".join(f"| {views:,} | {side} | {loss:.3f} |" for views, side, loss in training["curve"]),
        means="\n".join(row_of(one) for one in training["means"]),
        share=100 * mine.parameters / next(one.parameters for one in probes if one.name == "mobilenetv2_100"),
        cuts=" and ".join(f"{100 * amount:g} % of the {CUT_WORDS[target]}" for target, amount in CUTS),
        characters=CHARACTERS, sample=f"{PER_CLASS} photos of each class", moved=100 * training["moved"],
        teachers=" and ".join(f"`{name}`" for name in training["parts"][0]["settings"]["teachers"]),
        **{name: training["parts"][0]["settings"][name] for name in ("soft", "hard", "temperature", "recolour")},
    )  # fmt: skip


def part_in_words(steps: int, settings: Mapping[str, Any]) -> str:
    """Return a part of the run as list items of the card."""
    sides = ", then ".join(f"{side} pixels for {100 * share:.0f} %" for share, side in settings["sides"])
    power = settings["whitened"]
    drawn = f", and {settings['glyphs']} drawn characters to be told apart ({settings['glyph']:g}·cross entropy)"
    words = (
        f"- {steps:,} steps of {settings['batch']} views, {sides}{drawn if settings['glyphs'] else ''}: "
        f"targets {'standardised' if power is None else f'whitened to the power {power:g}'}; "
        f"batch norms {'as they were' if settings['frozen_norms'] else 'of the batch'}; {settings['optimizer']}, "
        f"learning rate {settings['learning_rate']:g} until {100 * settings['hold']:.0f} % of the steps, then falling; "
        f"weight decay {settings['weight_decay']:g}; weights averaged ({settings['average']:g})."
    )
    return textwrap.fill(words, 120, subsequent_indent="  ")


def row(probed: Probe) -> str:
    """Return one line of the card's table."""
    cells = [f"{probed.accuracy[name]:.3f}" for name in WANTED]
    return f"| {probed.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["thin", "means", "train", "pack", "probe", "install", "card"])
    parser.add_argument("--home", type=Path, required=True, help="answers, checkpoints and figures")
    parser.add_argument("--data", type=Path, help="unpacked image folders; default HOME/data")
    parser.add_argument("--only", default=";".join(MEANS), help="the means to try; default: all")
    parser.add_argument("--steps", type=int, help="of each part of the run; may grow until the rate falls")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that train together; default: all")
    parser.add_argument("--until", help="HH:MM at which to stop, to go on later")
    parser.add_argument("--minutes", type=float, help="after which to stop, to go on later")
    parser.add_argument("--pack", type=Path, help="a folder to pack into, or to train from")
    parser.add_argument("--quality", type=int, default=50, help="of the packed photos (WebP)")
    parser.add_argument("--device", default="cuda", help="of a run from a pack")
    parser.add_argument("--weights", type=Path, help=f"a student's file; default HOME/{RESULT}")
    parser.add_argument("--others", default="", help=f"probe these too, or all: {', '.join(OTHERS)}")
    args = parser.parse_args()
    data = args.data or args.home / "data"
    weights = args.weights or args.home / RESULT
    until = stop_at(args.until, args.minutes)
    if args.what == "thin":
        begin(args.home, data)
    elif args.what == "means":
        begin(args.home, data)
        torch.set_num_threads(1)  # the table's figures: start two at once, each with its own --only
        names = args.only.split(";")
        teachers = sorted({teacher for name in names for teacher in settings_of(name).teachers})
        try_means(school_in(args.home, data, teachers), args.home, names, say)
    elif args.what == "pack":
        photos = read_photos(unpacked(IMAGES, data) / "train", args.home / "train.npz")
        teachers = [TEACHERS[name] for name in COURSE.teachers]
        first = begin(args.home, data)
        size = write_pack(photos, teachers, SHARED / "weights", first, args.pack, quality=args.quality)
        say(f"{args.pack}: {size:,} bytes")
    elif args.what == "train" and args.pack:
        run_packed(args.home, args.pack, steps=args.steps, until=until, device=args.device)
    elif args.what == "train" and args.processes > 1 and "RANK" not in os.environ:
        begin(args.home, data)
        school_in(args.home, data)  # whose teachers answer with all cores, before there are several processes
        in_processes(args.processes)
    elif args.what == "train":
        begin(args.home, data)
        run_kept(args.home, data, steps=args.steps, until=until)
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
