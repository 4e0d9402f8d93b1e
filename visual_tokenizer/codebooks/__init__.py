"""What an explicit codebook is made of: estimators, updates, initializers, reseeders."""
