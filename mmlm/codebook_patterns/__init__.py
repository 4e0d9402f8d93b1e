"""In which order the tokens of several codebooks follow each other: one pattern a file."""
