"""Anthropic's API: messages, and the tokens that they would be."""
