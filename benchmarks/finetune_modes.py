"""Time of a training step by what trains, against full fine-tuning, and what a teacher holds.

    python benchmarks/finetune_modes.py

The embedded model under a `priced` plan on 4 ranks, steps of 8 windows of 256 bytes of held-out
text, one thread. Modes run interleaved; the time is that of the processor, which other programs
on the machine disturb less than the clock on the wall.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from harness import compare, finish, interleave, print_table
from transformers import TrainerCallback

import c2r
from c2r.adapters.huggingface import load_model, load_tokenizer
from c2r.assets import heldout_files, tiny_folder
from c2r.text import read_texts, token_batches
from c2r.training import DataSettings, FinetuneSettings, finetune, read_windows
from c2r.training.trainable import router_parameters

STEP = FinetuneSettings(batch_size=8, learning_rate=1e-4, log_every=1000)
CASES = {
    "full": STEP,
    "full, KL anchor": replace(STEP, kl_weight=1.0),
    "lora": replace(STEP, mode="lora"),
    "router": replace(STEP, mode="router"),
}


class StepClock(TrainerCallback):
    """Seconds of the processor that each step takes."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.start = time.process_time()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.process_time() - self.start)


def load():
    return load_model(tiny_folder(), dtype=torch.float32)


def make_plan(tokenizer):
    texts = read_texts(heldout_files())
    batches = token_batches(texts, tokenizer, seq_len=256, batch_size=8, num_tokens=16_384)
    profile = c2r.profile(load(), list(batches))
    return c2r.make_plan(profile, num_ranks=4, policy="priced", strength=0.1)


def measure(rounds, steps):
    """Seconds of a step, the median of each run."""
    tokenizer = load_tokenizer(tiny_folder())
    plan = make_plan(tokenizer)
    examples = read_windows(heldout_files(), tokenizer, DataSettings(seq_len=256)).windows

    def run(settings):
        clock = StepClock()
        finetune(load(), examples, plan, replace(settings, num_steps=steps), None, [clock])
        return float(np.median(clock.seconds[1:]))

    return interleave(CASES, rounds, run)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = compare(measure(args.rounds, args.steps), "full", "trains", "seconds_per_step")
    print_table(rows)
    model = load()
    routers = sum(parameter.nbytes for parameter in router_parameters(model).values())
    whole = sum(parameter.nbytes for parameter in model.parameters())
    print(f"teacher beside the model: {routers:,} of {whole:,} bytes, {routers / whole:.2%}")
    settings = vars(args) | {"threads": 1}
    finish("finetune_modes", "full", rows, settings, teacher_share=routers / whole)


if __name__ == "__main__":
    main()
