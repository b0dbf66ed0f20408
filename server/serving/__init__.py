"""Served names and the engines behind them."""
