"""Make a MODEL smaller, then refit its head on the compressed backbone's own features, and say what that cost.

Importing this loads torch and ONNX.
"""

from featcache.compression.pruning import prune
from featcache.compression.quantization import quantize
from featcache.compression.recovering import RecoverResult, recover
from featcache.compression.result import CompressResult
from featcache.graph.qdq import apply_quantization

__all__ = ["CompressResult", "RecoverResult", "apply_quantization", "prune", "quantize", "recover"]
