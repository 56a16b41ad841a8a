"""What a process of ours is told before any library is loaded: report to nobody, start no more threads than it may use.

The package calls `prepare_process` when it is imported. Both are said in environment variables, because ONNX Runtime
opens its telemetry store and the maths libraries start their threads as soon as they are loaded; processes started from
this one inherit them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

from featcache.system.threads import affinity_count, processor_count

# ONNX Runtime keeps a device id and what it will send in the user's cache folder; the hub client describes the machine
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# OpenVINO's makes a client id in the user's home when it is imported; it carries on where this package is not there
_TELEMETRY_PACKAGE = "openvino_telemetry"


def prepare_process(environment: MutableMapping[str, str] = os.environ) -> None:
    """Switch telemetry off, and bound the threads of maths libraries by the container's quota where none are asked for.

    These libraries (OpenMP's and so torch's, OpenBLAS, MKL) know a process's affinity, but not the quota of its
    container. `environment`: the variables to change.
    """
    environment.update(NO_TELEMETRY)
    sys.modules.setdefault(_TELEMETRY_PACKAGE, None)  # type: ignore[arg-type] # it cannot be imported
    if "OMP_NUM_THREADS" not in environment and (count := processor_count()) < affinity_count():
        environment["OMP_NUM_THREADS"] = str(count)
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None and hasattr(loaded, "disable_telemetry_events"):
        loaded.disable_telemetry_events()  # it was imported before us: its store is open, its events end here
