"""What a frozen visual tokenizer's indices are good for without a language model: masked image modelling."""
