"""OpenAI's responses: a conversation of items, answers kept for the next turn, typed events."""
