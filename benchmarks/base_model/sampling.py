"""Text that the dense model writes: what it knows, in the proportion in which it knows it."""

import torch
from transformers import StaticCache

OPENINGS = (
    "The", "In", "It is", "A", "When", "There are", "How to", "One of the", "Once upon a time",
    "Question: How", "Question: What", "To", "You can", "If you", "Many people", "First,",
)  # fmt: skip
BATCH = 64  # texts that are written together


@torch.no_grad()
def sample_rows(model, tokenizer, number, length, seed):
    """The batch of that number: `[64, length]` ids drawn token by token, after short openings."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    openings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in OPENINGS]
    rows = torch.zeros(BATCH, length, dtype=torch.int64)
    given = torch.zeros(BATCH, dtype=torch.int64)
    for row in range(BATCH):
        opening = openings[(number * BATCH + row) % len(openings)]
        rows[row, : len(opening)] = torch.tensor(opening)
        given[row] = len(opening)
    cache = StaticCache(config=model.config, max_cache_len=length)
    for place in range(length - 1):
        logits = model(input_ids=rows[:, place : place + 1], past_key_values=cache).logits[:, -1]
        drawn = _draw(logits.float(), generator)
        rows[:, place + 1] = torch.where(given > place + 1, rows[:, place + 1], drawn)
    return rows


def _draw(logits, generator):
    """One token per row, in proportion to the softmax (Gumbel's trick)."""
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(-1)
