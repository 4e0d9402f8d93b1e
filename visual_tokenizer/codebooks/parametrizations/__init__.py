"""What the codes are made of: the table itself, or something learned on top of it."""
