"""Engines on vLLM. Nothing outside this folder and its users' lazy imports knows vLLM."""
