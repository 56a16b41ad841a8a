"""The student: a timm network and, while it learns, what joins it to its targets and is dropped at the end."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from featcache.backbone.checkpoint import checkpoint_digest
from featcache.backbone.networks import create_network
from featcache.distillation.learner import Learner
from featcache.distillation.settings import DistillSettings
from featcache.errors import InputError
from featcache.recipe import Preprocessing
from featcache.system.files import write_atomically


class Student(Learner):
    """A network without classifier, a projection per teacher, a soft and a hard classifier where there are labels.

    Where `shared`, the soft classes are the hard ones, and one classifier serves both.
    """

    def __init__(
        self, network: nn.Module, *, width: int, projections: Sequence[int], soft: int, hard: int, shared: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.num_features = width
        self.projections = nn.ModuleList(nn.Linear(width, target) for target in projections)
        self.soft = nn.Linear(width, soft) if soft else None
        self.hard = nn.Linear(width, hard) if hard and not (soft and shared) else None
        self.shared = bool(soft and hard and shared)

    def embed(self, images: Tensor) -> Tensor:
        """Return the features (b, width) of normalised images (b, 3, side, side)."""
        network: Any = self.network
        features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
        return features

    def predict_targets(self, features: Tensor) -> list[Tensor]:
        """Return each teacher's standardised features as its projection has them."""
        return [projection(features) for projection in self.projections]

    def soft_logits(self, features: Tensor) -> Tensor | None:
        """Return the logits of the soft classifier, if there is one."""
        return None if self.soft is None else self.soft(features)

    def label_logits(self, features: Tensor) -> Tensor | None:
        """Return the logits over the images' own classes, if they are learned."""
        classifier = self.label_classifier
        return None if classifier is None else classifier(features)

    @property
    def label_classifier(self) -> nn.Linear | None:
        """The classifier over the images' own classes, if there is one."""
        return self.soft if self.shared else self.hard


def create_student(
    settings: DistillSettings, *, projections: Sequence[int], soft: int, hard: int, shared: bool = False
) -> Student:
    """Return a student with seeded random weights.

    Raises `BackboneError` for an unknown network and `InputError` where it cannot take its input size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = create_network(settings.student, {**settings.model_kwargs, "num_classes": 0})
        width = _width(network, settings)
        return Student(network, width=width, projections=projections, soft=soft, hard=hard, shared=shared)


def _width(network: nn.Module, settings: DistillSettings) -> int:
    """Return the length of the student's features, by one image of its input size in training and in evaluation."""
    side = settings.input_size
    whole: Any = copy.deepcopy(network)  # its batch norms shall not remember this
    try:
        with torch.no_grad():
            for mode in (True, False):  # a batch norm over a single place fails only in training
                maps = whole.train(mode).forward_features(torch.zeros(2, 3, side, side))
                width = whole.forward_head(maps, pre_logits=True).shape[1]
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise InputError(
            f"the student {settings.student!r} must take an input of {side}x{side} pixels, it does not ({reason}): "
            "choose another input_size, or pass img_size among its model_kwargs"
        ) from error
    return int(width)


def write_student(
    place: Path,
    student: Student,
    *,
    settings: DistillSettings,
    preprocessing: Preprocessing,
    classes: Sequence[str] = (),
    notes: Mapping[str, Any],
) -> int:
    """Write the network as fp16 safetensors that `load_backbone` reads; return the file's bytes.

    With `classes`, the classifier over them goes along (the file then serves the output ``logits`` too) where timm's
    network takes it as it is: one linear layer. `notes`: further metadata, each value written as JSON.
    """
    network, kwargs = student.network, dict(settings.model_kwargs)
    state = dict(network.state_dict())
    layer = student.label_classifier
    if classes and layer is not None:
        whole: Any = create_network(settings.student, {**settings.model_kwargs, "num_classes": len(classes)})
        classifier = whole.get_classifier()
        if isinstance(classifier, nn.Linear) and classifier.weight.shape == layer.weight.shape:
            prefix = next(name for name, module in whole.named_modules() if module is classifier)
            state |= {f"{prefix}.weight": layer.weight, f"{prefix}.bias": layer.bias}
            kwargs["num_classes"] = len(classes)
            notes = {**notes, "classes": list(classes)}
    metadata = {
        "timm_model": settings.student,
        "timm_kwargs": json.dumps(kwargs),
        "mean": json.dumps(list(preprocessing.mean)),
        "std": json.dumps(list(preprocessing.std)),
        "preprocessing": json.dumps(preprocessing.to_json()),
        **{name: json.dumps(value) for name, value in notes.items()},
    }
    return write_weights(place, stored_tensors(state), metadata)


def stored_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network as its file holds them: float16, without batch norm's counters."""
    return {
        name: (tensor.detach().half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def write_weights(place: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Write tensors and metadata as safetensors with a digest of both in the metadata; return the file's bytes."""
    with_digest = {**metadata, "digest": checkpoint_digest(tensors, metadata)}
    data = _ordered(save(dict(tensors), with_digest))
    write_atomically(place, data)
    return len(data)


def _ordered(data: bytes) -> bytes:
    """Return a safetensors file with its header sorted: the library writes metadata in another order each time."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors behind it stay aligned
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
