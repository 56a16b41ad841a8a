#!/usr/bin/env python3
"""Peer: the obvious server. FastAPI, a thread for each request, Pillow, ONNX Runtime with its default threads.

    scripts/peers/serve_fastapi.py BUNDLE --port PORT

Takes an image as the body of ``POST /classify``, answers ``{label, probability}``. It reads ``model.onnx``,
``labels.txt`` and ``preprocess.json`` of the bundle, whose resize it does as most programs write it.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", type=Path)
parser.add_argument("--port", type=int, required=True)


class Classifier:
    """The bundle's ONNX file."""

    def __init__(self, bundle: Path) -> None:
        self.session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
        described = json.loads((bundle / "preprocess.json").read_text(encoding="utf-8"))
        self.labels, self.size = described["labels"], described["preprocessing"]

    def decode(self, data: bytes) -> np.ndarray:
        """Return the pixels (height, width, 3): the short side resized, the middle cut out."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        resize, height, width = self.size["resize"], self.size["height"], self.size["width"]
        scale = resize / min(image.size)
        shape = (int(image.width * scale), int(image.height * scale))
        shape = (resize, shape[1]) if image.width < image.height else (shape[0], resize)
        image = image.resize(shape, Image.Resampling[self.size["interpolation"].upper()])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return np.asarray(image.crop((left, top, left + width, top + height)))

    def answers(self, pixels: np.ndarray) -> list[dict[str, object]]:
        """Return label and probability of each image (n, height, width, 3)."""
        probabilities = self.session.run(["probabilities"], {"image": pixels})[0]
        return [{"label": self.labels[int(row.argmax())], "probability": float(row.max())} for row in probabilities]


def main() -> None:
    arguments = parser.parse_args()
    classifier, app = Classifier(arguments.bundle), FastAPI()

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, object]:
        data = await request.body()
        return await run_in_threadpool(lambda: classifier.answers(classifier.decode(data)[None])[0])

    uvicorn.run(app, port=arguments.port, log_level="error")


if __name__ == "__main__":
    main()
