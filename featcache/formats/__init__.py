"""Device formats: one interface, one file or folder per format, a registry that finds them by name."""

from featcache.formats.interface import Converted, ModelFacts, Runner, Target
from featcache.formats.registry import find_target, register_target, target_names

__all__ = ["Converted", "ModelFacts", "Runner", "Target", "find_target", "register_target", "target_names"]
