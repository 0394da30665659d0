"""What the study's runs share: the text, the base model, and the placement of its experts."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from c2r.adapters.huggingface import load_model, load_tokenizer, profile
from c2r.assets import heldout_files, tiny_folder
from c2r.measuring import free_plan
from c2r.profiling import CollaborationProfile
from c2r.text import read_texts, token_batches
from c2r.training import FinetuneSettings, finetune

_CALIBRATION_TOKENS = 65536
_BASE_WINDOWS = 24576  # about twice the text; further passes are shuffled anew
_CALIBRATION_SEED, _BASE_SEED = 123, 77


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The size of a study.

    Attributes:
        steps: of fine-tuning.
        batch_size: windows per step.
        seq_len: tokens per window.
        learning_rates: peak of the learning rate by mode.
        base_steps: steps that train the base model from scratch; 0 for the embedded model.
        base_learning_rate: their peak.
        heldout_tokens: that each loss is measured on.
        bf16: compute in bfloat16.
    """

    steps: int
    batch_size: int
    seq_len: int
    learning_rates: dict[str, float]
    base_steps: int = 0
    base_learning_rate: float = 0.0
    heldout_tokens: int = 65536
    bf16: bool = False


SCALES = {
    "embedded": Scale(
        steps=400,
        batch_size=4,
        seq_len=512,
        learning_rates={"full": 3e-4, "router": 2e-4},
    ),
    "smoke": Scale(
        steps=2,
        batch_size=2,
        seq_len=256,
        learning_rates={"full": 3e-4, "router": 2e-4},
        heldout_tokens=2048,
    ),
    "100m": Scale(
        steps=600,
        batch_size=32,
        seq_len=1024,
        learning_rates={"full": 1e-4, "router": 1e-3},
        base_steps=6000,
        base_learning_rate=6e-4,
        heldout_tokens=262144,
        bf16=True,
    ),
}


class Corpus:
    """The training text as bytes, which are the tokens of the embedded model's tokenizer."""

    def __init__(self, seq_len):
        script = Path(__file__).parents[1] / "scripts" / "train_tiny.py"
        spec = importlib.util.spec_from_file_location("train_tiny", script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        texts = module.collect()
        self.kinds = [module.encode(texts[kind][False], 0) for kind in module.KINDS]
        self.seq_len = seq_len

    def windows(self, count, seed):
        """Windows `[count, seq_len]`, each from a kind of text drawn at random."""
        rng = np.random.default_rng(seed)
        rows = []
        for _ in range(count):
            text = self.kinds[rng.integers(len(self.kinds))]
            start = rng.integers(len(text) - self.seq_len)
            rows.append(text[start : start + self.seq_len].astype(np.int64))
        return torch.from_numpy(np.stack(rows))

    def examples(self, count, seed):
        """The same as examples to train on."""
        places = torch.arange(self.seq_len)
        return [
            {"input_ids": row, "labels": row, "position_ids": places}
            for row in self.windows(count, seed)
        ]


def open_base(folder, device):
    """The base model, in float32, with the experts' products grouped."""
    model = load_model(str(folder), dtype=torch.float32).to(device)
    model.set_experts_implementation("grouped_mm")
    return model


def calibrate(folder, corpus, device, path):
    """The base model's profile on training text, kept in `path`."""
    if not path.exists():
        rows = corpus.windows(_CALIBRATION_TOKENS // corpus.seq_len, _CALIBRATION_SEED).split(8)
        batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]
        profile(open_base(folder, device), batches).save(path)
    return CollaborationProfile.load(path)


def heldout_batches(scale):
    """Held-out text in windows."""
    return list(
        token_batches(
            read_texts(heldout_files()),
            load_tokenizer(str(tiny_folder())),
            seq_len=scale.seq_len,
            batch_size=16,
            num_tokens=scale.heldout_tokens,
        )
    )


def train_base(folder, corpus, scale, device, callbacks):
    """Trains a byte-level model of 116 million parameters; goes on where it was stopped."""
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=256,
            hidden_size=512,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            num_experts=32,
            num_experts_per_tok=4,
            moe_intermediate_size=256,
            shared_expert_intermediate_size=512,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            router_aux_loss_coef=0.01,
        )
    ).to(device)
    model.set_experts_implementation("grouped_mm")
    settings = FinetuneSettings(
        num_steps=scale.base_steps,
        batch_size=scale.batch_size,
        learning_rate=scale.base_learning_rate,
        warmup=0.03,
        weight_decay=0.1,
        aux_weight=0.01,
        control=True,
        bf16=scale.bf16,
        save_every=500,
        log_every=100,
    )
    examples = corpus.examples(_BASE_WINDOWS, _BASE_SEED)
    finetune(model, examples, free_plan(model), settings, out=folder, callbacks=callbacks)
