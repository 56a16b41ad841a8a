"""From image bytes to pixels: decoders, orientation, resize, seeded views. Knows no network and no cache."""
