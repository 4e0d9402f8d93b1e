"""What generator and discriminator minimise, one pair a file."""
