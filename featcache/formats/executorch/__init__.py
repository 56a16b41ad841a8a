"""ExecuTorch: lowered to XNNPACK in an environment of its own."""
