"""Runs in vLLM's environment: its newer model runner on a CPU, which returns routed experts.

python -P vllm_routed_program.py MODEL IDS.npy OUT.npz

That runner is written for GPUs, with kernels of Triton's. Here Triton interprets them, and vLLM is
told that Triton can compute on a CPU, which a Triton from PyPI cannot.
"""

import os
import sys
from types import SimpleNamespace

import numpy as np


def let_triton_interpret():
    os.environ.update(
        TRITON_INTERPRET="1",
        VLLM_USE_V2_MODEL_RUNNER="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
    )
    from triton.backends import backends

    backends.clear()
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)


def main(model, ids, out):
    let_triton_interpret()
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_seqs=2,
        enable_return_routed_experts=True,
    )
    prompts = [{"prompt_token_ids": row} for row in np.load(ids).tolist()]
    asked = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, detokenize=False)
    outputs = llm.generate(prompts, asked, use_tqdm=False)
    done = [(output.prompt_token_ids, output.outputs[0]) for output in outputs]
    ids = {f"{n}.token_ids": [*prompt, *made.token_ids] for n, (prompt, made) in enumerate(done)}
    experts = {f"{n}.routed_experts": made.routed_experts for n, (_, made) in enumerate(done)}
    np.savez(out, **ids, **experts)


if __name__ == "__main__":
    main(*sys.argv[1:])
