"""How an answer is written: the strategies, and what they have in common."""
