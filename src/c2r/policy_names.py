"""The routing policies by name, without the weight of what plans or runs them."""

STRENGTH_NAMES = {
    "top_k": "",
    "c2r": "T",
    "c2r_placed": "m",
    "group_limited": "m",
    "budgeted": "eps",
    "pruned": "eps",
    "priced": "price",
}
"""Every policy, and the name of its strength; `top_k` has none."""
