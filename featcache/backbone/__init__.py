"""Frozen timm networks: where their weights come from, which outputs they have, what identifies them."""
