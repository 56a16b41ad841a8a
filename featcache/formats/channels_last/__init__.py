"""The ONNX graph with channels last, which TensorFlow Lite and TensorFlow.js want."""
