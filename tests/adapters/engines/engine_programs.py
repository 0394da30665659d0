"""Runs in the environment of an engine: what the engine's own code makes of a file or of flags.

python engine_programs.py PROGRAM ARGUMENT ...     prints one JSON document
"""

import argparse
import json
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import torch


def sglang_map(file, num_layers, num_experts, num_ranks, num_replicas):
    """The experts of SGLang's slots, and the slots of its experts, that `file` gives."""
    made = _sglang_location(file, *map(int, (num_layers, num_experts, num_ranks, num_replicas)))
    return {
        "experts": made.physical_to_logical_map.tolist(),
        "slots": made.logical_to_all_physical_map.tolist(),
    }


def sglang_record(mode, file, chosen, num_experts, num_ranks, num_replicas):
    """Records experts with SGLang's recorder, which writes its dump by itself.

    `chosen` `[passes, tokens, layers, k]`, ids of experts; the first layer of the model is dense.
    The slots of an expert are taken in turn.
    """
    passes = np.load(chosen)
    sizes = map(int, (passes.shape[2] + 1, num_experts, num_ranks, num_replicas))
    location = _sglang_location(file, *sizes)
    from sglang.srt.eplb import expert_distribution as module

    moe = types.SimpleNamespace(
        expert_distribution_recorder_mode=mode,
        expert_distribution_recorder_buffer_size=-1,
        expert_balancedness_report_mode="off",
        moe_a2a_backend="none",
    )
    overlap = types.SimpleNamespace(enable_two_batch_overlap=False)
    module.get_exec = lambda: types.SimpleNamespace(moe=moe, overlap=overlap)
    module.reports_expert_balancedness = lambda: False
    module.get_schedule = lambda: types.SimpleNamespace(chunked_prefill_size=passes.shape[1])
    module.get_device_namespace = lambda: types.SimpleNamespace(device="cpu")
    module.get_device = lambda: "cpu"
    module.should_record_forward_pass = lambda _batch: True  # always, but on AMD
    torch.cpu.empty_cache = lambda: None
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    recorder = module.ExpertDistributionRecorder.init_new(location, rank=0)
    recorder.start_record()
    for number, tokens in enumerate(passes):
        with recorder.with_forward_pass(number, _sglang_batch(len(tokens))):
            for layer, experts in enumerate(np.moveaxis(tokens, 1, 0), 1):
                with recorder.with_current_layer(layer):
                    recorder.on_select_experts(_slots(location, layer, experts))
    recorder.stop_record()
    recorder.dump_record()


def _slots(location, layer, experts):
    held = location.logical_to_all_physical_map[layer].numpy()
    turns = np.arange(experts.size).reshape(experts.shape) % (held[experts] >= 0).sum(-1)
    return torch.from_numpy(np.take_along_axis(held[experts], turns[..., None], -1)[..., 0])


def _sglang_batch(num_tokens):
    return types.SimpleNamespace(
        input_ids=torch.arange(num_tokens),
        positions=torch.arange(num_tokens),
        extend_seq_lens_cpu=[num_tokens],
        forward_mode=types.SimpleNamespace(value=1),
    )


def _sglang_location(file, num_layers, num_experts, num_ranks, num_replicas):
    """What SGLang's loader makes of `file`."""
    _stub_sglang()
    from sglang.srt.eplb import expert_location as module

    moe = types.SimpleNamespace(
        init_expert_location=file,
        ep_num_redundant_experts=num_replicas,
        moe_a2a_backend="none",  # with one, each rank's map tells only the copy nearest to it
        ep_dispatch_algorithm="static",
        ep_join_mode=None,
    )
    parallel = types.SimpleNamespace(
        ep_size=num_ranks, elastic_ep_initial_size=None, nnodes=1, tp_size=num_ranks
    )
    module.get_exec = lambda: types.SimpleNamespace(moe=moe)
    module.get_parallel = lambda: parallel
    module.get_device = lambda: types.SimpleNamespace(device="cpu")
    sizes = types.SimpleNamespace(
        num_layers=num_layers, num_logical_experts=num_experts, num_groups=None
    )
    module.ModelConfigForExpertLocation.from_model_config = staticmethod(lambda _config: sizes)
    return module.compute_initial_expert_location_metadata(None, moe_ep_rank=0)


def sglang_flags(line):
    """The flags of a launch line, as SGLang's parser reads them."""
    return _flags(_sglang_parser(), line, "sglang.launch_server")


def sglang_options():
    """What SGLang's parser takes."""
    return _options(_sglang_parser())


def _sglang_parser():
    _stub_sglang()
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser


def vllm_flags(line):
    """The flags of a launch line, as vLLM's parser reads them."""
    return _flags(_vllm_parser(), line, "serve")


def vllm_options():
    """What vLLM's parser takes."""
    return _options(_vllm_parser())


def _vllm_parser():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def _options(parser):
    """By flag, the values that it takes: True for none, choices, or None for any."""
    return {
        flag: True if action.nargs == 0 else action.choices and list(map(str, action.choices))
        for action in parser._actions
        for flag in action.option_strings
    }


def megatron_groups(scores, num_groups, group_topk, topk):
    """The experts that Megatron's group-limited choice takes of scores `[tokens, E]`."""
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
