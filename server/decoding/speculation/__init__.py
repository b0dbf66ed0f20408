"""Words that are there before they are asked for. The text is the same with and without."""
