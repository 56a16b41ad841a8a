"""ExecuTorch: torch graph to ``.pte`` with XNNPACK's kernels, run by ExecuTorch's own Python runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graph_reader
import protocol
import torch


class ExecuTorch(protocol.Program):
    """`facts["integers"]`: ``stored`` where the graph's quantized operations become integer kernels, else ``none``."""

    def convert(self, graph: str, folder: str, facts: dict[str, Any]) -> list[str]:
        """Write ``model.pte``."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        read = graph_reader.graph_module("nodes").Graph.load(graph)
        module = graph_reader.graph_module("torch_graph").TorchGraph(read, integers=facts["integers"]).eval()
        image = torch.zeros(facts["shape"], dtype=torch.uint8)
        program = torch.export.export(module, (image,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        (Path(folder) / "model.pte").write_bytes(lowered.to_executorch().buffer)
        return ["model.pte"]

    def load(self, files: list[str], threads: int) -> None:
        """Load the program."""
        from executorch.runtime import Runtime

        self._method = Runtime.get().load_program(files[0]).load_method("forward")

    def infer(self, image: Any) -> Any:
        """Return the logits."""
        return self._method.execute([torch.from_numpy(image)])[0].numpy()


if __name__ == "__main__":
    protocol.serve(ExecuTorch())
