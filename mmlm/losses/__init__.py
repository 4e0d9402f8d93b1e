"""The loss of a batch, and what is logged of it."""
