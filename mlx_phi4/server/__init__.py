"""One process that serves text, pictures and speech to any OpenAI client."""
