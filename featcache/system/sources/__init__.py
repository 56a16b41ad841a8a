"""Inputs wherever they lie: files, objects in a storage, members of tars, rows of Parquet and Arrow files."""
