"""The training loop: batches, views and changes of colour are functions of (seed, step), so a resumed run is the same.

Nothing random is carried from step to step: whatever a step draws is seeded by its number. The state is the weights,
their running average, the optimizer's moments and the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from featcache.distillation.depthwise import use_fast_gradients
from featcache.distillation.losses import feature_loss, hard_loss, soft_loss
from featcache.distillation.replay import PixelSource
from featcache.distillation.settings import DistillSettings
from featcache.distillation.student import Student
from featcache.distillation.targets import TargetSource

_LARGEST_GRADIENT = 5.0  # norm; a guard against a bad batch, rarely met
_BF16_WIDTH = 8  # channels per group below which a convolution's bf16 gradient falls back to slow code


@dataclass(frozen=True, slots=True)
class Step:
    """The images (b,) of one step, as positions, and the view of each."""

    positions: npt.NDArray[np.int64]
    views: npt.NDArray[np.int64]


class Schedule:
    """Which images and views each step sees: every image once an epoch, its views in turn from a drawn first one."""

    def __init__(self, n: int, *, views: int, settings: DistillSettings) -> None:
        self.n, self.views, self.settings = n, views, settings
        self.batch = min(settings.batch_size, n)
        self.steps_per_epoch = n // self.batch
        self._first = np.random.default_rng([settings.seed, 0]).integers(0, views, size=n)
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.epochs * self.steps_per_epoch

    def step(self, number: int) -> Step:
        """Return what step `number` sees."""
        epoch, inside = divmod(number, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(self.n)
            self._epoch = epoch
        positions = self._order[inside * self.batch : (inside + 1) * self.batch]
        return Step(positions, (self._first[positions] + epoch) % self.views)


class Trainer:
    """A student, its optimizer and the running average of its weights, and how one step changes them.

    `labels` (n,) int64: of all images, -1 for none. `bf16`: compute the network in bfloat16 where that is fast.
    """

    def __init__(
        self,
        student: Student,
        settings: DistillSettings,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        labels: npt.NDArray[np.int64],
        bf16: bool,
        device: torch.device,
    ) -> None:
        self.student = student.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.settings, self.device, self.bf16 = settings, device, bf16
        self.number = 0
        self._labels = torch.from_numpy(labels)
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, 3, 1, 1)
        self._offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, 3, 1, 1)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in student.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in student.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
        )
        self.averaged = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
        if device.type == "cpu":
            use_fast_gradients(student.network)
            if bf16:
                _keep_narrow_convolutions_in_fp32(student.network)

    def step(self, steps: int, what: Step, pixels: npt.NDArray[np.uint8], targets: TargetSource) -> dict[str, float]:
        """Take the next of `steps` steps on `pixels` (b, side, side, 3) uint8; return the parts of the loss."""
        settings, number = self.settings, self.number
        seed = (settings.seed << 32) + number
        torch.manual_seed(seed)  # dropout and stochastic depth, where the student has them
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(number, steps)
        self.student.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.student.embed(self._images(pixels, torch.Generator().manual_seed(seed)))
        parts = self._losses(features.float(), what, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self._weigh(parts).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), _LARGEST_GRADIENT)
        self.optimizer.step()
        self._average()
        self.number = number + 1
        return {name: float(value.detach()) for name, value in parts.items()}

    def _losses(self, features: Tensor, what: Step, targets: TargetSource) -> dict[str, Tensor]:
        student, device = self.student, self.device
        parts: dict[str, Tensor] = {}
        if len(student.projections):
            wanted = [torch.from_numpy(values).to(device) for values in targets.features(what.positions, what.views)]
            each = [feature_loss(p(features), target) for p, target in zip(student.projections, wanted, strict=True)]
            parts["features"] = torch.stack(each).mean()
        logits = student.soft(features) if student.soft is not None else None
        if logits is not None:
            soft = targets.soft_labels(what.positions, what.views)
            parts["soft"] = soft_loss(
                logits,
                torch.from_numpy(soft.classes).to(device),
                torch.from_numpy(soft.probabilities).to(device),
                temperature=self.settings.temperature,
            )
        layer = student.label_classifier
        if layer is not None:
            answers = logits if student.shared and logits is not None else layer(features)
            parts["hard"] = hard_loss(answers, self._labels[torch.from_numpy(what.positions)].to(device))
        return parts

    def _weigh(self, parts: dict[str, Tensor]) -> Tensor:
        alpha = self.settings.alpha if "hard" in parts else 1.0
        weights = {"features": self.settings.feature_weight, "soft": alpha, "hard": 1 - alpha}
        return torch.stack([weights[name] * value for name, value in parts.items()]).sum()

    def _images(self, pixels: npt.NDArray[np.uint8], generator: torch.Generator) -> Tensor:
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        if self.settings.jitter:
            images = jitter(images, self.settings.jitter, scale=self._scale, offset=self._offset, generator=generator)
        else:
            images = images * self._scale - self._offset
        return images.contiguous(memory_format=torch.channels_last)

    def _average(self) -> None:
        """Move the averaged weights; early on by more, so that they forget the random start."""
        decay = min(self.settings.average, (1 + self.number) / (10 + self.number))
        with torch.no_grad():
            for name, tensor in self.student.state_dict().items():
                if tensor.is_floating_point():
                    self.averaged[name].lerp_(tensor, 1 - decay)
                else:
                    self.averaged[name].copy_(tensor)

    @contextmanager
    def averaged_weights(self) -> Iterator[Student]:
        """Lend the student with its averaged weights, in eval mode."""
        live = {name: tensor.detach().clone() for name, tensor in self.student.state_dict().items()}
        self.student.load_state_dict(self.averaged)
        try:
            yield self.student.eval()
        finally:
            self.student.load_state_dict(live)

    def predict(self, pixels: npt.NDArray[np.uint8], student: Student) -> npt.NDArray[np.int64]:
        """Return the classes (b,) that a `student` with a classifier over the labels sees in `pixels`."""
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() * self._scale - self._offset
        assert student.label_classifier is not None
        with torch.inference_mode():
            logits: Tensor = student.label_classifier(
                student.embed(images.contiguous(memory_format=torch.channels_last))
            )
        return logits.argmax(dim=1).cpu().numpy()

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state by name."""
        names = {parameter: name for name, parameter in self.student.named_parameters()}
        state = {f"student.{name}": tensor for name, tensor in self.student.state_dict().items()}
        state |= {f"averaged.{name}": tensor for name, tensor in self.averaged.items()}
        for parameter, values in self.optimizer.state.items():
            state |= {f"optimizer.{kind}.{names[parameter]}": tensor for kind, tensor in values.items()}
        return state

    def restore(self, state: Mapping[str, Tensor], number: int) -> None:
        """Take over the state that `tensors` gave after `number` steps."""
        self.student.load_state_dict(_below("student.", state))
        self.averaged = {name: tensor.to(self.device) for name, tensor in _below("averaged.", state).items()}
        for name, parameter in self.student.named_parameters():
            kinds: dict[str, Tensor] = {}
            for kind in ("step", "exp_avg", "exp_avg_sq"):
                tensor = state.get(f"optimizer.{kind}.{name}")
                if tensor is not None:
                    kinds[kind] = tensor if kind == "step" else torch.empty_like(parameter).copy_(tensor)
            if kinds:
                self.optimizer.state[parameter] = kinds
        self.number = number

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Begin with another run's averaged weights wherever name and shape agree."""
        with torch.no_grad():
            for name, tensor in self.student.state_dict().items():
                source = state.get(f"averaged.{name}")
                if source is not None and source.shape == tensor.shape:
                    tensor.copy_(source)
        self.averaged = {name: tensor.detach().clone() for name, tensor in self.student.state_dict().items()}


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def train(
    trainer: Trainer,
    schedule: Schedule,
    pixels: PixelSource,
    targets: TargetSource,
    *,
    after_step: Callable[[int, dict[str, float]], bool],
) -> float:
    """Take the steps that are left; return the seconds they took.

    `after_step`: called with the number of steps taken and the parts of the loss; false ends the training there.
    """
    started = time.perf_counter()
    while trainer.number < schedule.steps:
        what = schedule.step(trainer.number)
        parts = trainer.step(schedule.steps, what, pixels.batch(what.positions, what.views), targets)
        if not after_step(trainer.number, parts):
            break
    return time.perf_counter() - started


def jitter(images: Tensor, strength: float, *, scale: Tensor, offset: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (b, 3, h, w) of 0 to 255 normalised, with sharpness, contrast, brightness and side drawn for each.

    Sharpness x + s·(x − blur(x)) with s in [−1, 3]·strength, for every second image: photos scaled down are sharp,
    small ones scaled up are soft, and the student is to read both alike. Half of the images are mirrored.
    """
    b = len(images)
    drawn = torch.rand(4, b, 1, 1, 1, generator=generator).to(images.device)
    mean = images[:, :, ::4, ::4].mean(dim=(1, 2, 3), keepdim=True)
    contrast = 1 + (2 * drawn[1] - 1) * strength
    brightness = (2 * drawn[2] - 1) * strength * 100
    half = b // 2
    sharpness = 1 + (drawn[0, :half] * 4 - 1) * strength
    blurred = functional.avg_pool2d(images[:half], 3, stride=1, padding=1, count_include_pad=False)
    images = torch.cat([torch.lerp(blurred, images[:half], sharpness), images[half:]])
    images = torch.addcmul((mean * (1 - contrast) + brightness) * scale - offset, images, contrast * scale)
    mirrored = torch.nonzero(drawn[3].flatten() < 0.5).flatten()
    images[mirrored] = images[mirrored].flip(3)
    return images


def _keep_narrow_convolutions_in_fp32(network: nn.Module) -> None:
    """Run depthwise and first convolutions in fp32: their bf16 gradients have no fast code on processors.

    MobileNetV3-small at 96 pixels, forward and backward, images/s on two threads: fp32 760, all in bf16 174, this 889.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels // module.groups < _BF16_WIDTH:
            inner = module.forward

            def forward(x: Tensor, inner: Callable[[Tensor], Tensor] = inner) -> Tensor:
                with torch.autocast("cpu", enabled=False):
                    return inner(x.float())

            module.forward = forward  # type: ignore[method-assign, assignment]
