"""What every run of every program shares: whole files, the run's folder, processes, random state, checkpoints."""
