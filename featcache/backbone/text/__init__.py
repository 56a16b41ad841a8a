"""Frozen text encoders: their directories and tokenizers, how tokens are pooled, which outputs they have.

Each name is imported when it is asked for: a tokenizer needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.backbone.text.encoder import TextBackbone
    from featcache.backbone.text.load import load_text_backbone
    from featcache.backbone.text.tokenizer import TextTokenizer

__all__ = ["TextBackbone", "TextTokenizer", "load_text_backbone"]

_HOMES = {"TextBackbone": "encoder", "TextTokenizer": "tokenizer", "load_text_backbone": "load"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featcache.backbone.text' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featcache.backbone.text.{_HOMES[name]}"), name)
