"""What the forks that replay reports begin with: the imports that take seconds."""

import onnx  # noqa: F401
import onnxruntime  # noqa: F401

import featcache.cli
import featcache.extract.build
import featcache.train.fit
from featcache.backbone.timm_import import import_timm

import_timm()
assert featcache.cli.app.registered_commands  # each verb's file is read
