"""What becomes of codes that nobody uses."""
