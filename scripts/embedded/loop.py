"""Train a student on views whose answers are known: one loop, the same bytes from the same steps on one machine."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedded.glyphs import CHARACTERS, draw_glyphs
from embedded.optimizer import optimizers
from embedded.processes import part, processes, rank, summed
from embedded.targets import relations
from embedded.views import cutmix, recolour
from featcache.distillation.depthwise import use_fast_gradients
from featcache.distillation.losses import feature_loss, hard_loss, soft_loss
from featcache.distillation.state import load_tensors, read_notes, save_state


@dataclass(frozen=True)
class Settings:
    """How a student learns.

    `begins`: name of the file of its first weights, None: drawn; `frozen_norms`: the statistics of batch norms
    stay; `whitened`: power to which the teachers' principal components are, None: their features only standardised;
    `sides`: (share of the steps, pixels) in order; `batch`: of all processes together; `warmup`: steps; `hold`: share
    of the steps until the learning rate falls; `average`: of the weights; `relational`, `soft`, `hard`: weights of
    these losses beside the features' 1; `cutmix`: share of the batches that are mixed; `recolour`: strength; `glyphs`:
    how many characters are drawn beside each batch, of all processes together, to be told apart; `glyph`: that weight.
    """

    network: str = "mobilenetv2_nano"
    begins: str | None = None
    frozen_norms: bool = False
    teachers: tuple[str, ...] = ("mobilenetv2_100", "mobilenet_edgetpu_100")
    whitened: float | None = None
    sides: tuple[tuple[float, int], ...] = ((1.0, 64),)
    batch: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 100
    hold: float = 0.7
    average: float = 0.999
    relational: float = 0.0
    soft: float = 0.8
    hard: float = 0.2
    temperature: float = 2.0
    cutmix: float = 0.0
    recolour: float = 0.25
    glyphs: int = 0
    glyph: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """A batch. `images`: (b, 3, side, side); `features`: of each teacher, (b, d) targets; `logits`: (b, classes) of the
    teachers' head; `labels`: (b,)."""

    images: Tensor
    features: tuple[Tensor, ...]
    logits: Tensor
    labels: Tensor


class Lessons(Protocol):
    """Where batches come from. A batch follows from its number alone, so that a run can go on from any step.

    `count`: of photos. `widths`: of each teacher's targets. `classes`: of the teachers' head.
    """

    count: int
    widths: Sequence[int]
    classes: int

    def lesson(self, step: int, settings: Settings, side: int) -> Lesson:
        """Return the batch of a step, seen at `side` pixels; of several processes, this one's part of it."""


@dataclass(frozen=True)
class Draw:
    """What chance decides of a batch, for this process's part of it: `chosen`: positions of photos; `mirrored`: (b,)
    bool; `generator`: for what else is drawn, alike in all processes."""

    chosen: Tensor
    mirrored: Tensor
    generator: torch.Generator


def draw_of(step: int, count: int, settings: Settings) -> Draw:
    """Return the draw of a step among `count` photos, each of which is seen once a pass."""
    number, place = divmod(step, count // settings.batch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed * 7_919 + number))
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    mirrored = torch.rand(settings.batch, generator=generator) < 0.5
    chosen = order[place * settings.batch : (place + 1) * settings.batch]
    return Draw(part(chosen), part(mirrored), generator)


class Student(nn.Module):
    """A network without classifier, and what is dropped in the end: projections to targets, classifiers of photos and
    of characters."""

    def __init__(self, network: nn.Module, width: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.network = network
        self.projections = nn.ModuleList(nn.Linear(width, one) for one in widths)
        self.classifier = nn.Linear(width, classes)
        self.reader = nn.Linear(width, CHARACTERS)
        nn.init.zeros_(self.reader.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return features (b, width), predicted targets and logits."""
        features = self.network(images)
        return features, [one(features) for one in self.projections], self.classifier(features)


def loss_of(student: Student, lesson: Lesson, settings: Settings, share: float) -> Tensor:
    """Return the loss; `share`: how much of each view is its own, the rest being that of the next one (`cutmix`)."""
    features, predicted, logits = student(lesson.images)
    targets = [_mixed(one, share) for one in lesson.features]
    total = torch.stack([feature_loss(mine, wanted) for mine, wanted in zip(predicted, targets, strict=True)]).mean()
    if settings.relational:
        apart = [functional.smooth_l1_loss(relations(features.float()), relations(one)) for one in targets]
        total = total + settings.relational * torch.stack(apart).mean()
    heat = settings.temperature
    wanted = _mixed((lesson.logits / heat).softmax(1), share)
    every = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    total = total + settings.soft * soft_loss(logits, every, wanted, temperature=heat)
    hard = share * hard_loss(logits, lesson.labels)
    if share < 1:
        hard = hard + (1 - share) * hard_loss(logits, lesson.labels.roll(-1))
    return total + settings.hard * hard


def _mixed(targets: Tensor, share: float) -> Tensor:
    return targets if share == 1 else share * targets + (1 - share) * targets.roll(-1, 0)


def rate(step: int, steps: int, settings: Settings) -> float:
    """Return the learning rate: it rises linearly, stays, and falls as 1 - sqrt (Hagele et al. 2024, 2405.18392)."""
    held = settings.hold * steps
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if step < held:
        return settings.learning_rate
    return settings.learning_rate * (1 - ((step - held) / (steps - held)) ** 0.5)


def side_at(step: int, steps: int, settings: Settings) -> int:
    """Return the pixels of the views at a step."""
    passed = 0.0
    for share, side in settings.sides:
        passed += share
        if step < round(passed * steps):
            return side
    return settings.sides[-1][1]


def train(
    student: Student,
    lessons: Lessons,
    settings: Settings,
    steps: int,
    home: Path,
    say: Callable[[str], None],
    *,
    keep_every: int = 1000,
    until: float | None = None,
    device: str = "cpu",
) -> dict[str, Tensor] | None:
    """Return the averaged weights after `steps`, with checkpoints in `home` from which a later call goes on.

    `until`: a time in seconds since 1970 at which to stop between steps, whatever is left; None is returned then.
    `steps` may be more than in an earlier call as long as the learning rate had not begun to fall.
    """
    home.mkdir(parents=True, exist_ok=True)
    student = student.to(device, memory_format=torch.channels_last)
    if device == "cpu":
        use_fast_gradients(student.network)
    averaged = {name: tensor.detach().clone().float() for name, tensor in student.state_dict().items()}
    trained_by = optimizers(student, settings.optimizer, settings.weight_decay)
    begun = _resume(home, student, averaged, trained_by, settings)
    curve, started, shown = 0.0, time.monotonic(), begun
    student.train()
    student.network.train(not settings.frozen_norms)
    for step in range(begun, steps):
        for one in trained_by:
            for group in one.param_groups:
                group["lr"] = rate(step, steps, settings)
        draw = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * processes() + rank())
        side = side_at(step, steps, settings)
        lesson = lessons.lesson(step, settings, side)
        images, share = cutmix(recolour(lesson.images, settings.recolour, draw), settings.cutmix, draw)
        lesson = dataclasses.replace(lesson, images=images.contiguous(memory_format=torch.channels_last))
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = loss_of(student, lesson, settings, share)
        if settings.glyphs:
            glyphs, characters = (one.to(device) for one in draw_glyphs(settings.glyphs // processes(), side, draw))
            read = student.reader(student.network(glyphs.contiguous(memory_format=torch.channels_last)))
            loss = loss + settings.glyph * hard_loss(read, characters)
        loss.backward()
        late = _together(student, until is not None and time.time() > until)
        for one in trained_by:
            one.step()
            one.zero_grad(set_to_none=True)
        _average(averaged, student, min(settings.average, (step + 1) / (step + 10)))
        curve += loss.item() if step % 10 == 0 else 0.0
        if rank() == 0 and (step + 1) % 100 == 0:
            pace = (step + 1 - shown) * settings.batch / (time.monotonic() - started)
            line = {"step": step + 1, "loss": round(curve / 10, 4), "side": side, "views/s": round(pace)}
            with (home / "curve.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if (step + 1) % 500 == 0:
                say(f"{home.name}: {line}")
            curve, started, shown = 0.0, time.monotonic(), step + 1
        if rank() == 0 and ((step + 1) % keep_every == 0 or step + 1 == steps or late):
            _keep(home, step + 1, student, averaged, trained_by, settings)
        if late and step + 1 < steps:
            return None
    return averaged


def _together(student: nn.Module, late: bool) -> bool:
    """Average the gradients over the processes; return whether one of them wants to stop."""
    gradients = [one.grad for one in student.parameters() if one.grad is not None]
    *whole, stop = summed([*gradients, torch.tensor([float(late)])])
    if processes() > 1:
        for gradient, flat in zip(gradients, whole, strict=True):
            gradient.copy_(flat.view_as(gradient)).div_(processes())
    return bool(stop)


def _average(averaged: dict[str, Tensor], student: nn.Module, decay: float) -> None:
    """Move the averages of all that is no counter a step (Polyak & Juditsky 1992)."""
    with torch.no_grad():
        state = student.state_dict()
        floats = [name for name in averaged if state[name].is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floats], [state[name] for name in floats], 1 - decay)


def _keep(
    home: Path,
    step: int,
    student: nn.Module,
    averaged: dict[str, Tensor],
    trained_by: Sequence[Any],
    settings: Settings,
) -> None:
    """Make all that a later call needs the checkpoint of `home`."""
    names = {parameter: name for name, parameter in student.named_parameters()}
    tensors = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    tensors |= {f"averaged.{name}": tensor for name, tensor in averaged.items()}
    for optimizer in trained_by:
        for parameter, values in optimizer.state.items():
            tensors |= {f"moment.{kind}.{names[parameter]}": tensor for kind, tensor in values.items()}
    save_state(home, step, tensors, {"identity": _told(settings), "epochs": 0, "losses": {}})


def _resume(
    home: Path, student: nn.Module, averaged: dict[str, Tensor], trained_by: Sequence[Any], settings: Settings
) -> int:
    """Take up the checkpoint in `home`, where there is one, and return its step."""
    notes = read_notes(home)
    if notes is None:
        return 0
    if notes["identity"] != _told(settings):
        raise SystemExit(f"the checkpoint in {home} is of other settings: {notes['identity']}; name another --home")
    tensors = load_tensors(home, notes)
    student.load_state_dict({name: tensors[f"student.{name}"] for name in averaged})
    for name, tensor in averaged.items():
        tensor.copy_(tensors[f"averaged.{name}"])
    names = {parameter: name for name, parameter in student.named_parameters()}
    for optimizer in trained_by:
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            for kind in ("step", "exp_avg", "exp_avg_sq", "moving"):
                tensor = tensors.get(f"moment.{kind}.{names[parameter]}")
                if tensor is not None:  # a moment lies in memory as its parameter does
                    place = torch.empty_like(tensor if kind == "step" else parameter)
                    optimizer.state[parameter][kind] = place.copy_(tensor)
    return int(notes["step"])


def _told(settings: Settings) -> Any:
    """Return the settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))
