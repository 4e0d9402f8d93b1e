"""How a codebook learns."""
