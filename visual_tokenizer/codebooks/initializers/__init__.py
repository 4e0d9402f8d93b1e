"""Where a codebook's first vectors come from."""
