"""Student networks from a teacher's cache: the teacher answers once, the student learns from its answers.

`join` finds the images, `plan` what is to be learned, `targets` what the teacher said, `replay` the student's pixels of
the same views, `student` the network, `losses` and `loop` how it learns, `state` its checkpoints, `run` the verb.
"""

from featcache.distillation.run import DistillReport, distill
from featcache.distillation.settings import DistillSettings

__all__ = ["DistillReport", "DistillSettings", "distill"]
