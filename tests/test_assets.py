import json

import numpy as np
import torch

import c2r
from c2r.adapters.huggingface import load_model, load_tokenizer
from c2r.assets import heldout_files, tiny_folder
from c2r.text import read_texts, token_batches


def test_the_embedded_model_models_text_it_was_not_trained_on():
    """Loss well under that of the byte bigram model whose losses were recorded at training."""
    model = load_model(tiny_folder(), dtype=torch.float32)
    tokenizer = load_tokenizer(tiny_folder())
    record = json.loads((tiny_folder() / "training.json").read_text())
    for path in heldout_files():
        batches = token_batches(
            read_texts([path]), tokenizer, seq_len=512, batch_size=4, num_tokens=8192
        )
        bigram = record["heldout_nats_per_byte"][path.stem]["byte_bigram"]
        assert c2r.measure(model, batches).loss < 0.6 * bigram


def test_tokens_are_bytes():
    tokenizer = load_tokenizer(tiny_folder())
    text = "naïve\n\tcode = 'ß'  # 字 "
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode()) and tokenizer.decode(ids) == text


def test_size_and_text():
    weights = tiny_folder() / "model.safetensors"
    assert weights.stat().st_size < 8 * 2**20
    for path in heldout_files():
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        assert len(content) > 90_000 and len(np.unique(content)) > 60
