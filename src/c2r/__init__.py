"""Routing and planning for Mixture-of-Experts models."""
