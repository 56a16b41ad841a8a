"""Heads: small classifiers over cached features. Nothing here imports torch before an MLP is fitted."""

from featcache.heads.base import Head
from featcache.heads.io import load_fit, load_head, save_head
from featcache.heads.kinds import KINDS, head_class, register_head
from featcache.heads.linear import LinearHead

__all__ = ["KINDS", "Head", "LinearHead", "head_class", "load_fit", "load_head", "register_head", "save_head"]
