"""What `mmlm evaluate` can measure of a merged model."""
