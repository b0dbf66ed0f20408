"""OpenAI's dialect: its requests, its objects, its routes."""
