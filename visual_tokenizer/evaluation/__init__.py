"""What a trained tokenizer is worth, in numbers, plots and pages."""
