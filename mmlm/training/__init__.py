"""Training of a merged language model."""
