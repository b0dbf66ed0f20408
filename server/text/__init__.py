"""Text: tokens, words, prompts, grammars. No engines, no HTTP."""
