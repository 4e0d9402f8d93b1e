"""Frozen text encoders, one a file, found by the file's name."""
