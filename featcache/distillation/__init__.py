"""Students from a teacher's cache: the teacher answers once, the student learns from its answers. See README.md."""

from featcache.distillation.distilling import distill
from featcache.distillation.report import DistillReport
from featcache.distillation.settings import DistillSettings

__all__ = ["DistillReport", "DistillSettings", "distill"]
