"""Core ML: a program of its model intermediate language; computed again here, run on Apple devices."""
