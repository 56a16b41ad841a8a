"""What a process of ours is told before any library is loaded: report to nobody, leave processors to who needs them.

The package calls `prepare_process` when it is imported, the command line `use_free_processors` before a verb begins.
Both say it in environment variables, because ONNX Runtime opens its telemetry store and the maths libraries start their
threads as soon as they are loaded; processes started from this one inherit them. A variable that is set stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

from featcache.system.load import ProcessorTimes, free_processors, read_processor_times
from featcache.system.threads import affinity_count, processor_count

# ONNX Runtime keeps a device id and what it will send in the user's cache folder; the hub client describes the machine;
# Ray says what its clusters are used for
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
# OpenVINO's makes a client id in the user's home when it is imported; it carries on where this package is not there
_TELEMETRY_PACKAGE = "openvino_telemetry"

# A thread that waits for the next piece of work turns in a loop for so long before it sleeps; then another process's
# thread may be waiting for the very processor. OpenBLAS: 2^n cycles, 26 if not told; GNU's OpenMP, torch's: turns.
SHORT_WAITS = {"OPENBLAS_THREAD_TIMEOUT": "16", "GOMP_SPINCOUNT": "20000"}


def prepare_process(environment: MutableMapping[str, str] = os.environ) -> None:
    """Switch telemetry off; let maths libraries wait briefly, and bound their threads by the container's quota.

    These libraries (OpenMP's and so torch's, OpenBLAS, MKL) know a process's affinity, but not the quota of its
    container. `environment`: the variables to change.
    """
    environment.update(NO_TELEMETRY)
    if "OMP_WAIT_POLICY" not in environment:  # which says the same in a word
        for name, value in SHORT_WAITS.items():
            environment.setdefault(name, value)
    sys.modules.setdefault(_TELEMETRY_PACKAGE, None)  # type: ignore[arg-type] # it cannot be imported
    if "OMP_NUM_THREADS" not in environment and (count := processor_count()) < affinity_count():
        environment["OMP_NUM_THREADS"] = str(count)
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None and hasattr(loaded, "disable_telemetry_events"):
        loaded.disable_telemetry_events()  # it was imported before us: its store is open, its events end here


def use_free_processors(before: ProcessorTimes | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Bound the threads of maths libraries by the processors that others have left free since `before`.

    The threads of a product wait for each other inside it, in a loop: where one of them has to wait for its processor,
    the others burn theirs. A product by fewer threads then is many times faster. Nothing is bound where the variable is
    set, by the user or for the container's quota. `environment`: the variables to change.
    """
    if "OMP_NUM_THREADS" not in environment:
        count = free_processors(before, read_processor_times())
        if count < affinity_count():
            environment["OMP_NUM_THREADS"] = str(count)
