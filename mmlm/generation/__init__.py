"""Pictures from prompts and captions from pictures, with a merged model."""
