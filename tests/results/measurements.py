"""Measurements made up for tests that only read them."""


def measurement_document(**given):
    """JSON data of a measurement, every figure of which can be given."""
    return {
        "policy": "top_k",
        "strength": 0.0,
        "loss": 2.0,
        "perplexity": 7.4,
        "kl": 0.0,
        "top1_agreement": 1.0,
        "copies": 1.8,
        "copies_in_order": 2.4,
        "remote_copies": 1.35,
        "node_copies": 1.0,
        "rank_load_max_over_mean": 1.2,
        "active_experts_per_rank": 4.0,
        "num_tokens": 100,
        "loss_increase": 0.0,
        "loss_increase_interval": [0.0, 0.0],
        "plan_fingerprint": "0123456789abcdef",
        "num_ranks": 4,
    } | given
