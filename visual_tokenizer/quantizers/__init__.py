"""Quantizers, one a file."""
