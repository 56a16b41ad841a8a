"""A static page with onnxruntime-web, and how it is run in a browser here."""
