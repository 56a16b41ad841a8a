"""TensorFlow.js: a graph model written from the graph, run in Node.js."""
