"""How gradients pass the assignment of latents to codes."""
