"""How fast nudged answers are: ``scripts/bench``."""
