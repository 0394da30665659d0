"""What a plan's policy costs in a decode step of vLLM, against vLLM's own router. Baseline: that.

    python benchmarks/serving_overhead.py --python .engines/vllm/bin/python [--layers 4 --rounds 7]

One model in one vLLM, whose routers are switched between rounds. A step decodes one token of each
of 64 sequences. A policy that chooses fewer experts also saves time on them; the side `same choice`
prices ranks at next to nothing, so that it chooses as vLLM does and shows what choosing costs.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from harness import compare, finish, interleave, print_table

SIZES = {"hidden_size": 1024, "num_experts": 64, "num_experts_per_tok": 8}
SIZES |= {"moe_intermediate_size": 512, "norm_topk_prob": True, "head_dim": 64, "vocab_size": 1024}
SIZES |= {"num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 512}
SAME, STRENGTH = 1e-9, 0.2


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--python", type=Path, help="interpreter of an environment with vLLM and c2r"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="of the model; given to the process that runs vLLM")
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(in_vllm(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(options.layers, folder)
        own = [f"--{key}={getattr(options, key)}" for key in ("sequences", "steps", "rounds")]
        command = [options.python, __file__, f"--folder={folder}", *own]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    answer = json.loads(done.stdout.splitlines()[-1])
    rows = compare(answer["figures"], "vllm", unit="seconds_per_step")
    print_table(rows)
    settings = {**SIZES, **vars(options), "dtype": "float32", "policy": f"priced {STRENGTH}"}
    finish(Path(__file__).stem, "vllm", rows, settings | {"vllm": answer["vllm"]})


def make_model(num_layers, folder):
    """A random Qwen3-MoE under a plan for 8 ranks."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    import c2r

    torch.manual_seed(0)
    config = Qwen3MoeConfig(num_hidden_layers=num_layers, tie_word_embeddings=True, **SIZES)
    model = Qwen3MoeForCausalLM(config).eval()
    profile = c2r.profile(model, [{"input_ids": torch.randint(3, 1024, (4, 128))}])
    c2r.apply(model, c2r.make_plan(profile, 8, policy="priced", strength=STRENGTH))
    c2r.save_pretrained(model, folder)


def in_vllm(options):
    """Seconds of a step of each side in each round, and vLLM's version."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1")
    from vllm import LLM, SamplingParams, __version__
    from vllm.model_executor.layers.fused_moe.runner import moe_runner
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    routers, join = [], moe_runner.MoERunner.__init__

    def watched(runner, *args, **keywords):
        join(runner, *args, **keywords)
        routers.append(runner.router)

    moe_runner.MoERunner.__init__ = watched
    llm = LLM(
        model=options.folder,
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=options.sequences,
        enable_prefix_caching=False,
    )
    prompts = [{"prompt_token_ids": [3 + n, 4 + n]} for n in range(options.sequences)]
    asked = SamplingParams(
        max_tokens=options.steps, ignore_eos=True, temperature=0, detokenize=False
    )
    sides = sides_of(routers)

    def measure(switch):
        switch()
        started = time.perf_counter()
        llm.generate(prompts, asked, use_tqdm=False)
        return (time.perf_counter() - started) / options.steps

    return {
        "figures": interleave(sides, options.rounds, measure, num_warm_ups=1),
        "vllm": __version__,
    }


def sides_of(routers):
    """What puts each side in the place of all routers."""
    constrained = [type(router) for router in routers]
    planned = [router.c2r_policy for router in routers]
    same = []
    for policy in planned:
        free = type(policy).__new__(type(policy))
        free.__dict__.update(policy.__dict__)
        free.rule = dataclasses.replace(policy.rule, strength=SAME)
        same.append(free)

    def switch(classes, policies):
        for router, cls, policy in zip(routers, classes, policies, strict=True):
            router.__class__, router.c2r_policy = cls, policy

    return {
        "vllm": lambda: switch([cls.c2r_own_class for cls in constrained], planned),
        "same choice": lambda: switch(constrained, same),
        "under the plan": lambda: switch(constrained, planned),
    }


if __name__ == "__main__":
    main()
