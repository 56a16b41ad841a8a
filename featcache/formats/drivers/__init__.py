"""Programs that run inside the environment of a device's tools, not inside ours; they import nothing of featcache.

`protocol` is what each has in common, `graph_reader` lends those of our Python what reads an ONNX graph. One named
``run_X.py`` is started as a script, so its folder is on the path.
"""
