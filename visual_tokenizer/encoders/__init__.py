"""Architectures that turn pixels into latents, one a file."""
