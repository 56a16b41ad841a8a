"""Make a MODEL smaller, then refit its head on the compressed backbone's own features, and say what that cost.

Importing this loads torch and ONNX.
"""

from featcache.compress.pruning import prune
from featcache.compress.quantization import quantize
from featcache.compress.recovering import RecoverResult, recover
from featcache.compress.result import CompressResult
from featcache.graph.qdq import apply_quantization

__all__ = ["CompressResult", "RecoverResult", "apply_quantization", "prune", "quantize", "recover"]
