"""The ONNX graph and nothing else: written from a model, simplified, its quantization, its cost."""
