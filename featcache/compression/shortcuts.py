"""Find what a layer's answer is added to: then its weights can be solved for what the sum shall be.

The sum of a residual block carries the errors of all blocks before it. A layer that is solved for the whole network's
sum, less what the smaller network's shortcut gives, takes these back as far as its inputs tell of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SUMS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})
_EXACT = 1e-4  # of the largest value: a norm or a scale between layer and sum, computed in float32
_LEAST_SCALE = 1e-3  # of the largest: a channel that a norm all but mutes would have to move far to be heard


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A layer's answer, times `scale` (o,) and shifted, is added to what the module `reader` is given as its input.

    `scale` is 0 where the answer has no say in the sum.
    """

    reader: str
    scale: Tensor

    def correction(self, exact: Tensor, arriving: Tensor) -> Tensor:
        """Return (n, o): what the answers must be more where the shortcut gives `arriving` in place of `exact`."""
        heard = self.scale != 0
        return (exact - arriving) * torch.where(heard, 1 / torch.where(heard, self.scale, 1.0), 0.0)


def find_shortcuts(
    network: nn.Module, run: Callable[[Tensor], Any], images: Tensor, names: Sequence[str]
) -> dict[str, Shortcut]:
    """Return what the answers of the layers `names` are added to, for those that are added to something known by then.

    `run` calls the `network` with `images`, a few are enough. A shortcut counts where it is a module's input before the
    layer runs (a block's own input, or a norm's), and where a norm, a scale or nothing stands between layer and sum.
    """
    modules: dict[str, Any] = dict(network.named_modules())
    readers: dict[int, str] = {}
    answers: dict[str, tuple[Tensor, Tensor, dict[int, str]]] = {}
    sums = _Sums()

    def before(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                sums.alive.append(args[0])
                readers.setdefault(id(args[0]), name)

        return note

    def after(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            answers[name] = (output, output.clone(), dict(readers))

        return note

    with ExitStack() as stack, torch.inference_mode():
        for name, module in modules.items():
            if name:
                stack.callback(module.register_forward_pre_hook(before(name)).remove)
        for name in names:
            stack.callback(modules[name].register_forward_hook(after(name)).remove)
        stack.enter_context(sums)
        run(images)
    found: dict[str, Shortcut] = {}
    for name, (output, values, known) in answers.items():
        for left, right in sums.found:
            for (_, added), (other, _) in ((left, right), (right, left)):
                if id(other) in known and other is not output and name not in found:
                    scale = _scale(modules[name], values, added) if added.shape == values.shape else None
                    if scale is not None:
                        found[name] = Shortcut(known[id(other)], scale)
    return found


class _Sums(TorchFunctionMode):
    """Notes the tensors that are added to each other, with their values before; holds them, or ids would return."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = []
        self.alive: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a sum of two tensors of one shape; call `func`."""
        if getattr(func, "__name__", "") in _SUMS and len(args) > 1:
            a, b = args[:2]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dim() > 2:
                self.found.append(((a, a.clone()), (b, b.clone())))
        return func(*args, **(kwargs or {}))


def _scale(layer: nn.Module, answers: Tensor, added: Tensor) -> Tensor | None:
    """Return the scale of each channel with which `answers` became `added`, up to a shift; None where they did not."""
    x, y = (_channels_last(layer, values).double() for values in (answers, added))
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    spread = (x - x_mean).square().mean(dim=0)
    moves = spread > torch.finfo(torch.float32).eps * spread.max()
    scale = torch.where(moves, ((x - x_mean) * (y - y_mean)).mean(dim=0) / torch.where(moves, spread, 1.0), 0.0)
    if not bool((scale != 0).any()) or float((y_mean + (x - x_mean) * scale - y).abs().max()) > _EXACT * float(
        y.abs().max()
    ):
        return None
    return torch.where(scale.abs() < _LEAST_SCALE * scale.abs().max(), 0.0, scale).float()


def _channels_last(layer: nn.Module, values: Tensor) -> Tensor:
    """Return (positions, channels) of what a linear layer or a convolution gives."""
    return values.flatten(0, -2) if isinstance(layer, nn.Linear) else values.movedim(1, -1).flatten(0, -2)
