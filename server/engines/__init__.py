"""Engines: one interface (`base`), and its implementations."""
