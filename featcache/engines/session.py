"""The one place where ONNX Runtime is started: its options are stated here, and a file it refuses is one line."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from featcache.errors import FormatError
from featcache.system.threads import processor_count

_ERRORS_ONLY = 3  # of ONNX Runtime's levels: its remarks about a graph are no news to who asked for a result
REFUSALS = (  # what ONNX Runtime raises of a file, or of an input, that it does not take
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.NoModel,
    onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile,
)


def open_session(
    model: str | Path | bytes,
    *,
    threads: int | None = None,
    optimise: bool = True,
    save_optimised: Path | None = None,
    profile: Path | None = None,
    spinning: bool = False,
) -> onnxruntime.InferenceSession:
    """Return ONNX Runtime's session of an ONNX file, on the processor.

    Parameters
    ----------
    model
        Path of the file, or its bytes.
    threads
        How many compute one run; None: every processor this process may use. 1: the calling thread alone.
    optimise
        False: node by node as the graph is written, so that stored scales are computed in float32, no integers.
    save_optimised
        Where to write the graph in the form that is run.
    profile
        A folder for the times of all nodes, in a file that ``end_profiling`` of the session names.
    spinning
        Let threads without work turn in a loop, ONNX Runtime's default: a small network's image is faster by a sixth
        on an idle machine, which is what is timed, and slower where others hold the processors.

    Raises
    ------
    FormatError
        Where `model` is no ONNX file, or one with what ONNX Runtime does not know.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import TensorProto, helper
    >>> value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    >>> graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negate", value[:1], value[1:])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    >>> session = open_session(model.SerializeToString(), threads=1)
    >>> session.run(["y"], {"x": np.array([1, -2], dtype=np.float32)})[0].tolist()
    [-1.0, 2.0]
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1  # nodes one after the other
    # stated always: left to itself, it counts the machine's processors and pins threads to some that are not ours
    options.intra_op_num_threads = processor_count() if threads is None else threads
    # else a thread without work sleeps: turning in a loop, it would hold the processor that the others wait for
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_optimised is not None:
        options.optimized_model_filepath = str(save_optimised)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile / "profile")
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except REFUSALS as error:
        raise FormatError(f"the network must be an ONNX file, ONNX Runtime says: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return the first line of what a runtime says."""
    return (str(error).strip().splitlines() or [repr(error)])[0]
