"""What the trainings on transformers' Trainer share: arguments, checkpoints, the run's files, and how they stop."""
