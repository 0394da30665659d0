"""Fine-tuning of constrained models."""
