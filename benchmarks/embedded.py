"""What the placement benchmarks share: the embedded model's routing on two halves of its text."""

import numpy as np
import torch

from c2r.adapters.huggingface import load_model, load_tokenizer, profile
from c2r.assets import heldout_files, tiny_folder
from c2r.text import read_texts, split_texts, token_batches


def profile_halves(num_tokens):
    """The profiles of the first halves of the held-out texts, and of the second halves."""
    model = load_model(str(tiny_folder()), dtype=torch.float32)
    tokenizer = load_tokenizer(str(tiny_folder()))
    return tuple(
        profile(model, token_batches(texts, tokenizer, num_tokens=num_tokens))
        for texts in split_texts(read_texts(heldout_files()))
    )


def mean_of(rows, keys):
    """The rounded mean over rows of each of `keys`."""
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in keys}
