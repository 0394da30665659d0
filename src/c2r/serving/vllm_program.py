"""Runs in vLLM's own environment: what a model folder answers and routes there.

    python -P vllm_program.py JOBS.json     [{"model": FOLDER, "ids": IDS.npy, "out": OUT.npz}, ...]

What else a job names, such as "model_impl", is an option of vLLM's.

OUT.npz: `log_probs` of each next token `[sequences, tokens - 1]`, `constrained`, the numbers of the
layers that a plan's policy chooses in, and under the number of each MoE layer the ids that its
router chose, sorted, `[sequences * tokens, k]`. What fails leaves its reason in OUT.npz.error.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np
from vllm import LLM, SamplingParams
from vllm.model_executor.layers.fused_moe.runner import moe_runner
from vllm.plugins import load_general_plugins


def answer(model: str, ids: str, out: str, **asked: Any) -> None:
    """Writes `out` for the token ids `[sequences, tokens]` of the file `ids`."""
    chosen: dict[str, list[np.ndarray]] = {}
    routers: dict[str, Any] = {}
    sequences = np.load(ids)
    join = moe_runner.MoERunner.__init__

    def watched(
        runner: Any, layer_name: str, moe_config: Any, router: Any, *args: Any, **options: Any
    ) -> None:
        join(runner, layer_name, moe_config, router, *args, **options)
        number = next(part for part in layer_name.split(".") if part.isdigit())
        rows = chosen.setdefault(number, [])
        routers[number] = router
        router.set_capture_fn(lambda ids: rows.append(np.sort(ids.cpu().numpy(), axis=1)))

    moe_runner.MoERunner.__init__ = watched
    options = {"dtype": "float32", "enforce_eager": True, "seed": 0, "max_num_seqs": 1}
    options |= asked
    length = sequences.shape[1] + 8
    try:
        llm = LLM(model=model, skip_tokenizer_init=True, max_model_len=length, **options)
    finally:
        moe_runner.MoERunner.__init__ = join
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
    for rows in chosen.values():
        rows.clear()  # of the trial runs at start-up
    log_probs = []
    for sequence in sequences.tolist():
        (found,) = llm.generate([{"prompt_token_ids": sequence}], wanted, use_tqdm=False)
        pairs = zip(sequence[1:], found.prompt_logprobs[1:], strict=True)
        log_probs.append([entry[token].logprob for token, entry in pairs])
    arrays: dict[str, Any] = {
        number: np.concatenate(rows)[: sequences.size] for number, rows in chosen.items()
    }
    arrays["constrained"] = np.array(
        [int(number) for number, router in routers.items() if hasattr(router, "c2r_policy")],
        dtype=np.int64,
    )
    np.savez(out, log_probs=np.array(log_probs), **arrays)


if __name__ == "__main__":
    load_general_plugins()  # before `answer` watches the same constructor
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            answer(**job)
        except Exception as error:  # noqa: BLE001 - told to the caller, who knows what to expect
            reason = f"{type(error).__name__}: {error}"
            Path(job["out"] + ".error").write_text(reason, encoding="utf-8")
