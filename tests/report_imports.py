"""What the forks that replay reports begin with: the imports that take seconds."""

import onnx  # noqa: F401
import onnxruntime  # noqa: F401

import featcache.cli.verbs
import featcache.extract.build
import featcache.train.fit  # noqa: F401
from featcache.backbone.timm_import import import_timm

import_timm()
