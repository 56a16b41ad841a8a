"""Device formats: one interface, one file or folder per format, a registry that finds them by name."""

from featcache.formats.interface import ModelFacts, Runner, Target
from featcache.formats.registry import find_target, target_names

__all__ = ["ModelFacts", "Runner", "Target", "find_target", "target_names"]
