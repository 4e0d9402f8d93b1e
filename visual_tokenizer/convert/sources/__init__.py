"""Published tokenizers whose weights can be loaded, one a file."""
