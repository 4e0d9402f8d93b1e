"""What measures compute with: likelihoods, caption scores, pictures as vectors."""
