"""Where the language model of a merge comes from: one source a file."""
