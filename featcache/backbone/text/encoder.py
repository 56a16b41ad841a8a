"""`TextBackbone`: a frozen text encoder with named outputs, its tokenizer and the digest of its weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbone.backbone import weights_digest
from featcache.backbone.text.tokenizer import TextTokenizer
from featcache.errors import BackboneError, InputError
from featcache.recipe import Pooling, TextPreprocessing

_OUTPUT = re.compile(r"(mean|cls)-([1-9][0-9]*)")
_PROBE_LENGTHS = (5, 3)


class TextBackbone(nn.Module):
    """A frozen encoder in eval mode whose named outputs can be stored.

    `network`: a module of transformers that gives hidden states. `model_name`: a directory's name or a hub's id.
    `tokenizer`: the bytes of ``tokenizer.json``. `weights_label`: ``model.safetensors``, ``hub`` or ``random:SEED``.
    `outputs`: ``features``, the pooled last layer as `preprocessing` says; ``mean-1``… and ``cls-1``…, mean and first
    token of a layer, 1 being the last, never normalised.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        model_name: str,
        tokenizer: bytes,
        preprocessing: TextPreprocessing,
        weights_label: str,
        outputs: Sequence[str] = ("features",),
    ) -> None:
        super().__init__()
        config: Any = network.config
        self.network = network
        self.model_name = model_name
        self.preprocessing = preprocessing
        self.weights_label = weights_label
        self.outputs = tuple(outputs)
        self.tokenizer_json = tokenizer
        self.tokenizer = TextTokenizer(tokenizer, preprocessing)
        self.pad_id = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
        self._layers = _layers_of(self.outputs, int(config.num_hidden_layers), model_name)
        if getattr(network, "pooler", None) is not None:  # it feeds a task that the encoder was once trained for
            network.pooler = None  # type: ignore[assignment]
        if hasattr(config, "use_cache"):
            config.use_cache = False  # of keys and values, for texts that are written on
        network.loss_type = "ForSequenceClassification"  # type: ignore[assignment]  # without one it remarks when traced
        self.requires_grad_(False)
        self.eval()
        self.weights_sha256 = weights_digest(network)

    @property
    def num_features(self) -> int:
        """Return the length of a row of the first output, by running the network."""
        return self.output_shapes[0][0]

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shape of one row of each output, by running the network; `BackboneError` where it does not run."""
        most = max(_PROBE_LENGTHS)
        ids = torch.full((len(_PROBE_LENGTHS), most), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(_PROBE_LENGTHS):
            mask[row, :length] = 1
        try:
            with torch.inference_mode():
                return tuple(tuple(value.shape[1:]) for value in self(ids, mask))
        except (AttributeError, TypeError, RuntimeError, ValueError) as error:
            raise BackboneError(
                f"{self.model_name!r} must run on token ids and a mask alone, it says: "
                f"{(str(error).splitlines() or [repr(error)])[0]}; choose another encoder"
            ) from error

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Return one float tensor (n, width) per output, for ids and mask (n, length) int64; padding on the right."""
        answer = self.network(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=any(self._layers.values()),
            return_dict=True,
        )
        values = []
        for name in self.outputs:
            layer = self._layers[name]
            hidden = answer.hidden_states[-1 - layer] if layer else answer.last_hidden_state
            kind = self.preprocessing.pooling if name == "features" else name.partition("-")[0]
            pooled = pool(hidden, attention_mask, kind)  # type: ignore[arg-type]
            if name == "features" and self.preprocessing.normalize:
                pooled = pooled / pooled.norm(dim=1, keepdim=True).clamp(min=1e-12)
            values.append(pooled)
        return tuple(values)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector (n, width) of token vectors (n, length, width), those of padding left out.

    >>> tokens, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    >>> [pool(tokens, mask, kind).item() for kind in ("mean", "cls", "last", "max")]
    [2.0, 1.0, 3.0, 3.0]
    """
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "mean":
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == "last":
        behind = torch.cat([weights[:, 1:], torch.zeros_like(weights[:, :1])], dim=1)
        return (hidden * (weights - behind)).sum(1)
    return torch.where(weights > 0, hidden, torch.full_like(hidden, torch.finfo(hidden.dtype).min)).amax(1)


def available_outputs(layers: int) -> tuple[str, ...]:
    """Return the names of an encoder's outputs that has so many layers."""
    depth = range(1, layers + 1)
    return ("features", *(f"mean-{layer}" for layer in depth), *(f"cls-{layer}" for layer in depth))


def _layers_of(outputs: tuple[str, ...], layers: int, model_name: str) -> dict[str, int]:
    """Return output → how many layers before the last it is taken."""
    if not outputs or len(set(outputs)) != len(outputs):
        raise InputError(f"outputs must be one or more distinct names, got {outputs!r}")
    found = {}
    for name in outputs:
        match = _OUTPUT.fullmatch(name)
        number = 1 if name == "features" else int(match[2]) if match else 0
        if not 1 <= number <= layers:
            raise BackboneError(
                f"output {name!r} is not one of {model_name!r}; it has features, mean-1..mean-{layers}, "
                f"cls-1..cls-{layers}"
            )
        found[name] = number - 1
    return found
