"""Run a text encoder fast: token ids in, rows out, on OpenVINO, ONNX Runtime or torch.

    engine = open_text_engine(backbone)
    (features,) = engine.run(backbone.tokenizer.encode(texts))       # (n, num_features) float32

Texts of about the same length are computed together in batches of fixed shapes. Which shape a text gets depends on its
own length alone: on one machine and version a row is bit for bit the same whatever stands beside it, in whatever order.
"""

from featcache.engines.text.buckets import Bucket, bucket_lengths, plan_batches
from featcache.engines.text.interface import TextEngine
from featcache.engines.text.opening import open_text_engine

__all__ = ["Bucket", "TextEngine", "bucket_lengths", "open_text_engine", "plan_batches"]
