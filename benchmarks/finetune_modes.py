"""Time of a training step by what trains, against full fine-tuning, and what a teacher holds.

    python benchmarks/finetune_modes.py

The embedded model under a `priced` plan on 4 ranks, steps of 8 windows of 256 bytes of held-out
text, one thread. Modes run interleaved; the time is that of the processor, which other programs
on the machine disturb less than the clock on the wall.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
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
    tokenizer = load_tokenizer(tiny_folder())
    plan = make_plan(tokenizer)
    examples = read_windows(heldout_files(), tokenizer, DataSettings(seq_len=256)).windows
    seconds = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, settings in CASES.items():
            clock = StepClock()
            finetune(load(), examples, plan, replace(settings, num_steps=steps), None, [clock])
            seconds[name].append(float(np.median(clock.seconds[1:])))
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(arguments.rounds, arguments.steps)
    table = Table(title="Processor time of a step, medians; quartiles of ratios in one round")
    for column in ("trains", "ms", "of full"):
        table.add_column(column)
    cases = []
    for name, values in seconds.items():
        low, middle, high = np.quantile(
            np.array(values) / np.array(seconds["full"]), (0.25, 0.5, 0.75)
        )
        median = float(np.median(values))
        table.add_row(name, f"{1000 * median:.0f}", f"{middle:.2f} ({low:.2f}-{high:.2f})")
        cases.append({"name": name, "seconds": median, "of_full": [low, middle, high]})
    Console().print(table)
    model = load()
    routers = sum(parameter.nbytes for parameter in router_parameters(model).values())
    whole = sum(parameter.nbytes for parameter in model.parameters())
    print(f"teacher beside the model: {routers:,} of {whole:,} bytes, {routers / whole:.2%}")
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    document = {"benchmark": Path(__file__).stem, "baseline": "full", "cases": cases, **machine}
    print(json.dumps({**document, **vars(arguments), "teacher_share": routers / whole}))


if __name__ == "__main__":
    main()
