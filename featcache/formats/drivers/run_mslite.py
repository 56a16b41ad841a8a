"""MindSpore Lite 2.0 on Python 3.7: ONNX to ``.ms`` or MindIR with its converter, run with its Python runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import protocol


class MindSporeLite(protocol.Program):
    """`facts["kind"]`: ``ms`` for the runtime on devices, ``mindir`` for the one on servers and in the cloud.

    `facts["integers_above"]`: weights of more numbers than that are stored as INT8; None: none is.
    """

    def convert(self, graph: str, folder: str, facts: dict[str, Any]) -> list[str]:
        """Write ``model.ms`` or ``model.mindir``."""
        import mindspore_lite

        kinds = {"ms": mindspore_lite.ModelType.MINDIR_LITE, "mindir": mindspore_lite.ModelType.MINDIR}
        converter = mindspore_lite.Converter()
        converter.save_type = kinds[facts["kind"]]
        if facts["integers_above"] is not None:
            rounding = {"quant_type": "WEIGHT_QUANT", "bit_num": "8", "min_quant_weight_channel": "0"}
            rounding["min_quant_weight_size"] = str(facts["integers_above"])
            # plain bytes: compressed ones have no places of their own for the stored integers
            rounding["enable_encode"] = "false"
            converter.set_config_info("common_quant_param", rounding)
        converter.convert(
            fmk_type=mindspore_lite.FmkType.ONNX, model_file=graph, output_file=str(Path(folder) / "model")
        )
        name = "model." + facts["kind"]
        (Path(folder) / name).chmod(0o644)  # it comes out unreadable for others
        return [name]

    def load(self, files: list[str], threads: int) -> None:
        """Build the model for the CPU."""
        import mindspore_lite

        kinds = {".ms": mindspore_lite.ModelType.MINDIR_LITE, ".mindir": mindspore_lite.ModelType.MINDIR}
        context = mindspore_lite.Context()
        context.target = ["cpu"]
        context.cpu.thread_num = threads
        context.cpu.precision_mode = "enforce_fp32"
        self._model = mindspore_lite.Model()
        self._model.build_from_file(files[0], kinds[Path(files[0]).suffix], context)
        self._inputs = self._model.get_inputs()

    def infer(self, image: Any) -> Any:
        """Return the logits."""
        self._inputs[0].set_data_from_numpy(image)
        return self._model.predict(self._inputs)[0].get_data_to_numpy().copy()


if __name__ == "__main__":
    protocol.serve(MindSporeLite())
