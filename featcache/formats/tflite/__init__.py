"""TensorFlow Lite: a flatbuffer written from the graph, run by LiteRT."""
