"""Measures of what a tokenizer's tokens mean, one a file, found by the file's name."""
