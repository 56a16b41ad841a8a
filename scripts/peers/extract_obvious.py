#!/usr/bin/env python3
"""Peer: the obvious program. timm, ImageFolder, a DataLoader with two workers, PIL, eager fp32, numpy.save.

    scripts/peers/extract_obvious.py IMAGES OUT.npy --model mobilenetv2_100 --weights FILE.safetensors

Prints JSON: images, extract_seconds (first batch asked for to the file saved), images_per_second, wall_seconds.
"""

from __future__ import annotations

import time

started = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from featcache.backbone.timm_import import import_timm  # noqa: E402 (only so that a mismatched torchvision can be imported)

timm = import_timm()
from torchvision.datasets import ImageFolder  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("images")
parser.add_argument("out")
parser.add_argument("--model", required=True)
parser.add_argument("--weights", required=True)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--workers", type=int, default=2)
args = parser.parse_args()

model = timm.create_model(args.model, num_classes=0).eval()
missing = model.load_state_dict(load_file(args.weights), strict=False).missing_keys
assert not missing, missing
config = timm.data.resolve_data_config({}, model=model)
dataset = ImageFolder(args.images, transform=timm.data.create_transform(**config))
loader = DataLoader(dataset, batch_size=args.batch_size, num_workers=args.workers)

first = time.perf_counter()
features = []
with torch.no_grad():
    for images, _ in loader:
        features.append(model(images).numpy())
np.save(args.out, np.concatenate(features))
last = time.perf_counter()

report = {
    "images": len(dataset),
    "extract_seconds": last - first,
    "images_per_second": len(dataset) / (last - first),
    "startup_seconds": first - started,
    "wall_seconds": last - started,
    "paths": [path for path, _ in dataset.samples],
}
print(json.dumps(report))
