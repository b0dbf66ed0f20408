"""The HTTP API: OpenAI's, and what is ours on top."""
