"""Runs in the environment of an engine: what the engine's own code makes of a file or of flags.

python engine_programs.py PROGRAM ARGUMENT ...     prints one JSON document
"""

import argparse
import json
import shlex
import sys
import types
from pathlib import Path


def sglang_map(file, num_layers, num_experts, num_ranks, num_replicas):
    """The experts of SGLang's slots, and the slots of its experts, that `file` gives."""
    _stub_sglang()
    from sglang.srt.eplb import expert_location as module

    moe = types.SimpleNamespace(
        init_expert_location=file,
        ep_num_redundant_experts=int(num_replicas),
        moe_a2a_backend="none",  # with one, each rank's map tells only the copy nearest to it
        ep_dispatch_algorithm="static",
        ep_join_mode=None,
    )
    parallel = types.SimpleNamespace(
        ep_size=int(num_ranks), elastic_ep_initial_size=None, nnodes=1, tp_size=int(num_ranks)
    )
    module.get_exec = lambda: types.SimpleNamespace(moe=moe)
    module.get_parallel = lambda: parallel
    module.get_device = lambda: types.SimpleNamespace(device="cpu")
    sizes = types.SimpleNamespace(
        num_layers=int(num_layers), num_logical_experts=int(num_experts), num_groups=None
    )
    module.ModelConfigForExpertLocation.from_model_config = staticmethod(lambda _config: sizes)
    made = module.compute_initial_expert_location_metadata(None, moe_ep_rank=0)
    return {
        "experts": made.physical_to_logical_map.tolist(),
        "slots": made.logical_to_all_physical_map.tolist(),
    }


def sglang_flags(line):
    """The flags of a launch line, as SGLang's parser reads them."""
    _stub_sglang()
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return _flags(parser, line, "sglang.launch_server")


def vllm_flags(line):
    """The flags of a launch line, as vLLM's parser reads them."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return _flags(make_arg_parser(FlexibleArgumentParser()), line, "serve")


def megatron_groups(scores, num_groups, group_topk, topk):
    """The experts that Megatron's group-limited choice takes of scores `[tokens, E]`."""
    import torch
    from megatron.core.transformer.moe.moe_utils import group_limited_topk

    rows = torch.tensor(json.loads(Path(scores).read_text()))
    _, ids = group_limited_topk(
        rows, int(topk), *rows.shape, num_groups=int(num_groups), group_topk=int(group_topk)
    )
    return ids.sort(-1).values.tolist()


def _flags(parser, line, program):
    words = shlex.split(line.replace("\\\n", " "))
    words = words[words.index(program) + 1 :]
    known = parser.parse_args(words)
    return {name: value for name, value in vars(known).items() if _is_plain(value)}


def _is_plain(value):
    return value is None or isinstance(value, bool | int | float | str | list | dict)


def _stub_sglang():
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.serving.sglang_program import stub_kernels

    stub_kernels()


if __name__ == "__main__":
    found = globals()[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(found, default=str))
