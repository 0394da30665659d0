"""Spreads a model's experts over ranks."""
