"""Folders and tables to samples: what is listed, which labels, which split."""
