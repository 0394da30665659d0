"""Runs in vLLM's own environment: what a model folder answers and routes there.

    python vllm_program.py JOBS.json     [{"model": FOLDER, "ids": IDS.npy, "out": OUT.npz}, ...]

OUT.npz: `log_probs` of each next token `[sequences, tokens - 1]`, and under the number of each MoE
layer the ids that its router chose, sorted, `[sequences * tokens, k]`.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1")

import numpy as np
from vllm import LLM, SamplingParams
from vllm.model_executor.layers.fused_moe.runner import moe_runner
from vllm.plugins import load_general_plugins


def answer(model, ids, out):
    chosen = {}
    join = moe_runner.MoERunner.__init__

    def watched(runner, layer_name, moe_config, router, *args, **options):
        join(runner, layer_name, moe_config, router, *args, **options)
        number = next(part for part in layer_name.split(".") if part.isdigit())
        rows = chosen.setdefault(number, [])
        router.set_capture_fn(lambda ids: rows.append(np.sort(ids.numpy(), axis=1)))

    moe_runner.MoERunner.__init__ = watched
    options = {"dtype": "float32", "max_model_len": 300, "enforce_eager": True, "seed": 0}
    try:
        llm = LLM(model=model, skip_tokenizer_init=True, max_num_seqs=1, **options)
    finally:
        moe_runner.MoERunner.__init__ = join
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
    for rows in chosen.values():
        rows.clear()  # of the trial runs at start-up
    log_probs = []
    for sequence in np.load(ids).tolist():
        (found,) = llm.generate([{"prompt_token_ids": sequence}], wanted, use_tqdm=False)
        pairs = zip(sequence[1:], found.prompt_logprobs[1:], strict=True)
        log_probs.append([entry[token].logprob for token, entry in pairs])
    routed = {number: np.concatenate(rows) for number, rows in chosen.items()}
    np.savez(out, log_probs=np.array(log_probs), **routed)


if __name__ == "__main__":
    load_general_plugins()  # before `answer` watches the same constructor
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            answer(job["model"], job["ids"], job["out"])
        except Exception as error:  # noqa: BLE001 - told to the test, which knows what to expect
            reason = f"{type(error).__name__}: {error}"
            Path(job["out"] + ".error").write_text(reason, encoding="utf-8")
