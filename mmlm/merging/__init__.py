"""A visual tokenizer's vocabulary into a language model, and out of it."""
