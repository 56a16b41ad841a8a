"""Frozen text encoders: their directories and tokenizers, how tokens are pooled, which outputs they have."""

from featcache.backbone.text.encoder import TextBackbone
from featcache.backbone.text.load import load_text_backbone
from featcache.backbone.text.tokenizer import TextTokenizer

__all__ = ["TextBackbone", "TextTokenizer", "load_text_backbone"]
