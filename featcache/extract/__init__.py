"""Bring a cache up to date with its images: what changed, decode, run the engine, commit."""
