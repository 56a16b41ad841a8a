#!/usr/bin/env python3
"""Peer: LitServe with dynamic batching, the same ONNX file and the same decode as `serve_fastapi.py`.

    scripts/peers/serve_litserve.py BUNDLE --port PORT

Takes an image as the field ``file`` of a multipart ``POST /predict``, answers ``{label, probability}``.
"""

import litserve
import numpy as np
from fastapi import Request
from serve_fastapi import Classifier, parser


class Api(litserve.LitAPI):
    """Decodes in the worker, runs what has come within 5 ms together."""

    def __init__(self, bundle) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.005)
        self.bundle = bundle

    def setup(self, device: str) -> None:
        self.classifier = Classifier(self.bundle)

    def decode_request(self, request: Request) -> np.ndarray:
        return self.classifier.decode(request["file"].file.read())

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, pixels: np.ndarray) -> list[dict[str, object]]:
        return self.classifier.answers(pixels)

    def unbatch(self, output: list[dict[str, object]]) -> list[dict[str, object]]:
        return output

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


if __name__ == "__main__":
    arguments = parser.parse_args()
    server = litserve.LitServer(Api(arguments.bundle), accelerator="cpu", workers_per_device=1)
    server.run(port=arguments.port, log_level="error", generate_client_file=False)
