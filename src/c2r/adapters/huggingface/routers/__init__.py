"""Finds a model's routers, and tells models apart by them."""
