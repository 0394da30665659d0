"""How much profiling adds to a forward pass.

    python benchmarks/profile_overhead.py

A random Qwen2-MoE with 24 layers of 60 experts, k = 4, on batches of 2,048 tokens (random ids:
profiling costs the same whatever the experts chosen). Runs of several forward passes with and
without capture and counting are interleaved; the probe that finds the routers, once a run, counts.
The figure is the median of the pairwise ratios of processor time, which other work on the machine
disturbs less than the clock. Prints a table and a JSON line.
"""

import argparse
import time
from functools import partial

import torch
from harness import compare, finish, interleave, print_table, seconds_of
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from c2r.adapters.huggingface import traces
from c2r.traces import ProfileBuilder


def make_model(hidden_size: int) -> Qwen2MoeForCausalLM:
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=1024,
            hidden_size=hidden_size,
            num_hidden_layers=24,
            num_attention_heads=8,
            num_key_value_heads=8,
            num_experts=60,
            num_experts_per_tok=4,
            moe_intermediate_size=hidden_size * 11 // 16,
            shared_expert_intermediate_size=hidden_size * 11 // 4,
            intermediate_size=hidden_size,
        )
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = make_model(args.hidden_size)
    batch = {"input_ids": torch.randint(0, 1024, (2, 1024))}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    builder = ProfileBuilder()

    def plain() -> None:
        with torch.no_grad():
            for _ in range(args.batches):
                model.base_model(**batch, use_cache=False)

    def profiled() -> None:
        for trace in traces(model, [batch] * args.batches):
            builder.update(trace)

    sides = {"plain": plain, "profiled": profiled}
    on_processor = partial(seconds_of, clock=time.process_time)
    rows = compare(interleave(sides, args.rounds, on_processor, num_warm_ups=1), "plain")
    print_table(rows)
    settings = vars(args) | {"layers": 24, "experts": 60, "k": 4, "tokens": 2048}
    finish("profile_overhead", "plain: forward passes without capture", rows, settings)


if __name__ == "__main__":
    main()
