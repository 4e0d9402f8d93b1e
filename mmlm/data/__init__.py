"""Data of a multimodal language model: pictures tokenized to shards, and sequences made of them."""
