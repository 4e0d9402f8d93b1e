"""How a picture sits in a token sequence: one layout a file, named after the model family that uses it."""
