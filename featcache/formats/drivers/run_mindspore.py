"""MindSpore, the framework: a cell made of the ONNX graph to MindIR with its `export`, run with its `GraphCell`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graph_reader
import numpy as np
import protocol


class MindSpore(protocol.Program):
    """The file keeps uint8 NHWC in; logits and probabilities come out, in this order."""

    def convert(self, graph: str, folder: str, facts: dict[str, Any]) -> list[str]:
        """Write ``model.mindir``; `NotImplementedError` for a network above a gigabyte."""
        import mindspore
        import mindspore_graph

        _use_processor()
        place = Path(folder) / "model.mindir"
        image = mindspore.Tensor(np.zeros(facts["shape"], dtype=np.uint8))
        cell = mindspore_graph.MindSporeGraph(graph_reader.graph_module("nodes").Graph.load(graph))
        mindspore.export(cell, image, file_name=str(place), file_format="MINDIR")
        if not place.exists():
            raise NotImplementedError("networks above a gigabyte: MindSpore keeps their weights in other files")
        place.chmod(0o644)  # it comes out unreadable for others
        place.write_bytes(_described(place.read_bytes(), facts))
        return [place.name]

    def load(self, files: list[str], threads: int) -> None:
        """Build the network for the processor."""
        import mindspore

        _use_processor()
        mindspore.device_context.cpu.op_tuning.threads_num(threads)
        mindspore.runtime.dispatch_threads_num(threads)
        self._network = mindspore.nn.GraphCell(mindspore.load(files[0]))

    def infer(self, image: Any) -> Any:
        """Return the logits."""
        import mindspore

        return self._network(mindspore.Tensor(image))[0].asnumpy()


def _use_processor() -> None:
    """Have networks compiled as a whole, for the processor."""
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device("CPU")


def _described(data: bytes, facts: dict[str, Any]) -> bytes:
    """Return the file with the model's name, input and labels, and without the time it was made at."""
    from mindspore.train import mind_ir_pb2

    model = mind_ir_pb2.ModelProto.FromString(data)
    for attribute in model.graph.attribute:
        if attribute.name == "compile_phase":
            attribute.s = b"export.mindir"
    model.user_info.update({"name": facts["name"], "input": facts["input_text"], "labels": facts["labels_text"]})
    return bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    protocol.serve(MindSpore())
