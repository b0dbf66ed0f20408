"""Measuring a pair: which γ (`nudge calibrate`), and how good its answers are (`nudge eval`)."""
