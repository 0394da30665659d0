"""Flags of released engines, and a parser of command lines that knows no others.

Those of vLLM and SGLang are held against their own parsers by test_engine_code.py, where the
engines are installed. Those of the others were read in the source of the release.
"""

import argparse
import re
import shlex

ANY = None
"""The value of a flag that takes any."""

_VLLM = {
    "--data-parallel-size": ANY,
    "--data-parallel-size-local": ANY,
    "--data-parallel-start-rank": ANY,
    "--data-parallel-address": ANY,
    "--data-parallel-rpc-port": ANY,
    "--headless": True,
    "--enable-expert-parallel": True,
    "--enable-return-routed-experts": True,
    "--all2all-backend": ("deepep_high_throughput", "deepep_low_latency"),
    "--additional-config": ANY,
}
_TORCHRUN = {
    "--nproc-per-node": ANY,
    "--nnodes": ANY,
    "--node-rank": ANY,
    "--master-addr": ANY,
    "--master-port": ANY,
}
FLAGS = {
    "vLLM 0.32.0": _VLLM,
    "vllm-ascend 0.23.0": _VLLM,
    "SGLang 0.5.23": {
        "--model-path": ANY,
        "--tp-size": ANY,
        "--ep-size": ANY,
        "--moe-a2a-backend": ("deepep", "mooncake"),
        "--init-expert-location": ANY,
        "--ep-num-redundant-experts": ANY,
        "--ep-dispatch-algorithm": ("static",),
        "--expert-distribution-recorder-mode": ("per_token",),
        "--nnodes": ANY,
        "--node-rank": ANY,
        "--dist-init-addr": ANY,
    },
    "TensorRT-LLM 1.2.1": {
        "--tp_size": ANY,
        "--ep_size": ANY,
        "--gpus_per_node": ANY,
        "--extra_llm_api_options": ANY,
    },
    "Megatron-LM core_v0.19.0": _TORCHRUN,
}
"""By release, the values that a flag takes: any, some of its choices, or True for none."""

MEGATRON_ARGUMENTS = {
    "--num-experts": ANY,
    "--expert-model-parallel-size": ANY,
    "--moe-router-topk": ANY,
    "--moe-router-num-groups": ANY,
    "--moe-router-group-topk": ANY,
    "--moe-token-dispatcher-type": ("allgather", "alltoall", "flex"),
}
"""Of `pretrain_gpt.py` of the same release."""

_PROGRAMS = {
    "vLLM 0.32.0": "vllm serve MODEL",
    "vllm-ascend 0.23.0": "vllm serve MODEL",
    "SGLang 0.5.23": "python -m sglang.launch_server",
    "TensorRT-LLM 1.2.1": "trtllm-serve MODEL",
    "Megatron-LM core_v0.19.0": "torchrun",
}
_LAUNCHER = re.compile(
    r"(echo (?P<config>'[^']*'|\S+) > options\.yaml && )?"
    r"(srun --mpi=pmix --nodes \d+ --ntasks-per-node \d+ trtllm-llmapi-launch )?"
)


def parse(release, line):
    """The flags of a line by name, and what stands before it; SystemExit where one is unknown."""
    before = _LAUNCHER.match(line)
    words = shlex.split(line[before.end() :])
    program = _PROGRAMS[release].split()
    parser = parser_of(FLAGS[release])
    found = {"config": before["config"] and shlex.split(before["config"])[0]}
    for expected in program:
        word = words.pop(0)
        assert expected in (word, "MODEL"), f"{word} starts {release}, not {expected}"
        if expected == "MODEL":
            found["model"] = word
    if release.startswith("Megatron"):
        parser.add_argument("program", nargs=argparse.REMAINDER)
    return found | vars(parser.parse_args(words))


def parser_of(flags):
    """A parser of these flags, none of which may be cut short."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag, values in flags.items():
        if values is True:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, choices=values)
    return parser
