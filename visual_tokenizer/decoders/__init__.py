"""Architectures that turn codes into pixels, one a file."""
