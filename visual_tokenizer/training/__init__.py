"""Training of a visual tokenizer by accelerate."""
