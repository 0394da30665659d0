"""A Mixture-of-Experts language model, split from a dense one as LLaMA-MoE was, and distilled."""
