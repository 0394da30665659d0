"""Taps routers: constrains what they choose, and records it."""
