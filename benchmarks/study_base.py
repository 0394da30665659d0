"""What the runs of a study share: a base model, and the text for each purpose."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from c2r.adapters.huggingface import load_model, load_tokenizer
from c2r.assets import heldout_files, tiny_folder
from c2r.measuring import free_plan
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
        base_steps: steps that train the base model from scratch; 0 for a model that is there.
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

    def measured_form(self, model):
        """The model in the numbers that it is measured in."""
        return model.bfloat16() if self.bf16 and model.device.type == "cpu" else model


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
    "smollm": Scale(
        steps=32,
        batch_size=4,
        seq_len=256,
        learning_rates={"full": 1e-4, "router": 1e-3, "lora": 5e-4},
        heldout_tokens=32768,
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


class ByteMaterial:
    """The embedded model, or a larger one of its kind, and what every Python installation carries.

    All of a study's text and models come through a class like this one.
    """

    def __init__(self, folder, scale, device, callbacks):
        self.scale, self.device = scale, device
        self.corpus = Corpus(scale.seq_len)
        self.base = tiny_folder()
        if scale.base_steps:
            self.base = folder / "base"
            if not (self.base / "config.json").exists():
                train_base(self.base, self.corpus, scale, device, callbacks)

    def open(self):
        """The base model, in float32, with the experts' products grouped."""
        model = load_model(str(self.base), dtype=torch.float32).to(self.device)
        model.set_experts_implementation("grouped_mm")
        return model

    def calibration(self):
        """Batches of training text to profile."""
        rows = self.corpus.windows(_CALIBRATION_TOKENS // self.scale.seq_len, _CALIBRATION_SEED)
        return as_batches(rows.split(8))

    def examples(self, count, seed):
        """Windows to tune on."""
        return as_examples(self.corpus.windows(count, 1000 + seed))

    def heldout(self):
        """Batches of text that no training saw."""
        return list(
            token_batches(
                read_texts(heldout_files()),
                load_tokenizer(str(self.base)),
                seq_len=self.scale.seq_len,
                batch_size=16,
                num_tokens=self.scale.heldout_tokens,
            )
        )


def as_batches(windows):
    """Windows as what a model is called with."""
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in windows]


def as_examples(windows):
    """Windows as what is trained on."""
    places = torch.arange(windows.shape[1])
    return [{"input_ids": row, "labels": row, "position_ids": places} for row in windows]


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
    examples = as_examples(corpus.windows(_BASE_WINDOWS, _BASE_SEED))
    finetune(model, examples, free_plan(model), settings, out=folder, callbacks=callbacks)
