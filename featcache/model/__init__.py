"""Backbone and head as one model: merged, saved as the directory MODEL, its network folded and narrowed."""
