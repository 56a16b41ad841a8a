"""What the features lose when a few layers change: measured, not guessed from the layers' own error.

Everything that ran before the changed layers gives the same as before, so that is remembered, not computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featcache.compression.layers import Run


class FeatureProbe:
    """The features that a network gives for some images, and how far off they are when a few of its layers change."""

    def __init__(self, network: nn.Module, run: Run, images: Tensor, layers: Sequence[str]) -> None:
        """`layers`: names of those that will change, each time the ones of one block."""
        self.network, self.run, self.images = network, run, images
        self._modules = dict(network.named_modules())
        self._outputs: dict[str, Any] = {}
        self._when: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._record(_before_blocks(layers, self._modules))
        self._variance = (
            (self.exact - self.exact.mean(dim=0)).square().mean().clamp(min=torch.finfo(torch.float32).tiny)
        )

    def error(self, layers: Sequence[str]) -> float:
        """Return the mean square of the features' change, a share of their variance, with `layers` as they are now."""
        with torch.inference_mode(), self._remembered(min(self._when[name] for name in layers), layers):
            features = self.run(self.images)
        return float((features - self.exact).square().mean() / self._variance)

    def _record(self, kept: set[str]) -> None:
        """Run once: the features, the order in which modules end, and the outputs of those in `kept`."""
        handles = []

        def hook(name: str) -> Any:
            def note(module: nn.Module, inputs: Any, output: Any) -> None:
                self._calls[name] = self._calls.get(name, 0) + 1
                self._when[name] = len(self._when)
                if name in kept:
                    self._outputs[name] = output

            return note

        for name, module in self._modules.items():
            handles.append(module.register_forward_hook(hook(name)))
        try:
            with torch.inference_mode():
                self.exact = self.run(self.images)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _remembered(self, when: int, layers: Sequence[str]) -> Iterator[None]:
        """Let the modules that ended before the layer at `when` began give what they gave."""
        blocks = {layer.rpartition(".")[0] for layer in layers}
        skipped = [
            name
            for name in self._outputs
            if self._when[name] < when
            and self._calls[name] == 1
            and not any(_inside(layer, name) for layer in layers)
            and not any(name.rpartition(".")[0] == block for block in blocks)
        ]
        try:
            for name in skipped:
                output = self._outputs[name]
                self._modules[name].forward = lambda *_, output=output, **__: output
            yield
        finally:
            for name in skipped:
                del self._modules[name].forward


def _before_blocks(layers: Sequence[str], modules: dict[str, nn.Module]) -> set[str]:
    """Return the modules that stand beside a block that holds some of `layers`, or beside a block around it."""
    kept: set[str] = set()
    for layer in layers:
        block = layer.rpartition(".")[0]
        while block:
            around = block.rpartition(".")[0]
            kept |= {name for name in modules if name and name.rpartition(".")[0] == around}
            block = around
    return kept


def _inside(layer: str, module: str) -> bool:
    return layer == module or layer.startswith(f"{module}.")
