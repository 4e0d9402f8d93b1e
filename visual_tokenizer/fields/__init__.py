"""What a field of a recipe or config may hold, how it is read, and how it is described."""
