"""Sources of documents, text and pictures in any order, one a file."""
