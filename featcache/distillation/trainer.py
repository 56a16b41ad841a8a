"""One step of training, and what it changes: the weights, their running average, the optimizer's moments, a number.

Nothing random is carried from step to step: whatever a step draws is seeded by its number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featcache.distillation.depthwise import use_fast_gradients
from featcache.distillation.jitter import jitter
from featcache.distillation.learner import Learner
from featcache.distillation.losses import feature_loss, hard_loss, soft_loss
from featcache.distillation.schedule import Step
from featcache.distillation.settings import TrainingSettings
from featcache.distillation.targets import TargetSource
from featcache.system.memory import keep_freed_memory
from featcache.system.processor import processor_has_bf16

_LARGEST_GRADIENT = 5.0  # norm; a guard against a bad batch, rarely met
_TIMED_PASSES = 3
_BF16_WIDTH = 8  # channels per group below which a convolution's bf16 gradient falls back to slow code


def has_bf16(device: torch.device) -> bool:
    """Return whether `device` multiplies bfloat16 matrices in hardware; oneDNN also says so where it emulates them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and processor_has_bf16()


class Trainer:
    """A learner, its optimizer and the running average of its weights, and how one step changes them.

    `labels` (n,) int64: of all images, -1 for none. `bf16`: compute the network in bfloat16 where that is fast.
    """

    def __init__(
        self,
        student: Learner,
        settings: TrainingSettings,
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
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
        )
        self.averaged = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
        if device.type == "cpu":
            keep_freed_memory()
            use_fast_gradients(student.network)
            if bf16:
                _keep_narrow_convolutions_in_fp32(student.network)

    def step(self, steps: int, batch: Step, pixels: npt.NDArray[np.uint8], targets: TargetSource) -> dict[str, float]:
        """Take the next of `steps` steps on `pixels` (b, side, side, 3) uint8; return the parts of the loss."""
        settings, number = self.settings, self.number
        seed = (settings.seed << 32) + number
        torch.manual_seed(seed)  # dropout and stochastic depth, where the student has them
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(number, steps)
        self.student.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.student.embed(self._images(pixels, torch.Generator().manual_seed(seed)))
        parts = self._losses(features.float(), batch, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self._weigh(parts).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), _LARGEST_GRADIENT)
        self.optimizer.step()
        self._average()
        self.number = number + 1
        return {name: float(value.detach()) for name, value in parts.items()}

    def _losses(self, features: Tensor, batch: Step, targets: TargetSource) -> dict[str, Tensor]:
        student, device = self.student, self.device
        parts: dict[str, Tensor] = {}
        if predicted := student.predict_targets(features):
            expected = [
                torch.from_numpy(values).to(device) for values in targets.features(batch.positions, batch.views)
            ]
            each = [feature_loss(values, target) for values, target in zip(predicted, expected, strict=True)]
            parts["features"] = torch.stack(each).mean()
        logits = student.soft_logits(features)
        if logits is not None:
            soft = targets.soft_labels(batch.positions, batch.views)
            parts["soft"] = soft_loss(
                logits,
                torch.from_numpy(soft.classes.copy()).to(device),  # may be one row for all images: not writable
                torch.from_numpy(soft.probabilities).to(device),
                temperature=self.settings.temperature,
            )
        answers = student.label_logits(features)
        if answers is not None:
            parts["hard"] = hard_loss(answers, self._labels[torch.from_numpy(batch.positions)].to(device))
        return parts

    def answer_loss(self, batch: Step, pixels: npt.NDArray[np.uint8], targets: TargetSource) -> float:
        """Return the loss on `pixels` without labels, of the weights as they are: how far the teacher's answers are."""
        with torch.inference_mode():
            features = self.student.embed(self._normalised(pixels)).float()
            parts = self._losses(features, batch, targets)
            parts.pop("hard", None)
            return float(self._weigh(parts))

    def seconds_per_step(self, batch: int, *, height: int, width: int) -> float:
        """Return the time of a step on `batch` images of that size: the fastest of a few passes; nothing is changed."""
        pixels = np.random.default_rng(0).integers(0, 256, size=(batch, height, width, 3), dtype=np.uint8)
        fastest = math.inf
        for _ in range(_TIMED_PASSES):
            started = time.perf_counter()
            self.student.train()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                features = self.student.embed(self._normalised(pixels))
            features.float().square().mean().backward()
            fastest = min(fastest, time.perf_counter() - started)
        self.optimizer.zero_grad(set_to_none=True)
        return fastest

    def _weigh(self, parts: dict[str, Tensor]) -> Tensor:
        alpha = self.settings.alpha if "hard" in parts else 1.0
        weights = {"features": self.settings.feature_weight, "soft": alpha, "hard": 1 - alpha}
        return torch.stack([weights[name] * value for name, value in parts.items()]).sum()

    def _images(self, pixels: npt.NDArray[np.uint8], generator: torch.Generator) -> Tensor:
        if not self.settings.jitter:
            return self._normalised(pixels)
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        images = jitter(images, self.settings.jitter, scale=self._scale, offset=self._offset, generator=generator)
        return images.contiguous(memory_format=torch.channels_last)

    def _normalised(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() * self._scale - self._offset
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
    def averaged_weights(self) -> Iterator[Learner]:
        """Lend the student with its averaged weights, in eval mode."""
        live = {name: tensor.detach().clone() for name, tensor in self.student.state_dict().items()}
        self.student.load_state_dict(self.averaged)
        try:
            yield self.student.eval()
        finally:
            self.student.load_state_dict(live)

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the classes (b,) that a learner of labels sees in `pixels`, with its weights as they are."""
        with torch.inference_mode():
            logits = self.student.label_logits(self.student.embed(self._normalised(pixels)))
        assert logits is not None
        classes: npt.NDArray[np.int64] = logits.argmax(dim=1).cpu().numpy()
        return classes

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
        self.optimizer.state.clear()
        self.student.load_state_dict(_below("student.", state))
        self.averaged = {name: tensor.clone().to(self.device) for name, tensor in _below("averaged.", state).items()}
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
