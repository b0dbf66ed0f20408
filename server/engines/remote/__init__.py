"""Engines that run elsewhere, asked over HTTP."""
