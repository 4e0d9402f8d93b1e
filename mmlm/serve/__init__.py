"""A merged model behind HTTP: endpoints in the form of OpenAI's, and a page to try prompts."""
