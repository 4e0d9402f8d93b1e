"""Networks that tell pictures from reconstructions, one a file."""
