"""One MoE layer on one GPU: c2r's against transformers' own, MegaBlocks, ScatterMoE and SonicMoE.

    python benchmarks/gpu_layer.py
    python benchmarks/gpu_layer.py --models Qwen3-30B --tokens 16384 --profile profile.safetensors

All run the same experts (bfloat16, SwiGLU) on the same tokens and choice, and must give the same
output, or are left out and named; so are those that are not installed. Forward, and forward and
backward, are interleaved with a dense product of matrices and a copy of rows, of which rates are
given; caches are cold. Prints a table and a JSON line. On a machine without a GPU,
`--device cpu --tiny` tries the program and claims nothing.
"""

import argparse

import torch
from gpu import add_arguments, device_of, finish, interleaved, routing_of
from gpu_peers import PEERS
from harness import print_table, ratios, spread
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

import c2r.adapters.huggingface  # noqa: F401  (registers the experts implementation c2r)

MODELS = {  # hidden size, expert size, experts, k, share of the experts on this rank
    "Qwen1.5-MoE": (2048, 1408, 60, 4, 1),
    "OLMoE": (2048, 1024, 64, 8, 1),
    "Qwen3-30B": (2048, 768, 128, 8, 1),
    "Mixtral": (4096, 14336, 8, 2, 1),
    "DeepSeek-V3": (7168, 2048, 256, 8, 8),
}
TINY = {"tiny": (64, 32, 8, 2, 1), "tiny share": (64, 32, 16, 4, 2)}
OF_TRANSFORMERS = ("grouped_mm", "eager", "c2r", "sonicmoe")
_TOLERANCE = 0.05
_WHY_NOT = (ImportError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError)


def make_experts(hidden_size, expert_size, num_experts, device):
    config = Qwen3MoeConfig(
        hidden_size=hidden_size, moe_intermediate_size=expert_size, num_experts=num_experts
    )
    with torch.device(device):
        experts = Qwen3MoeExperts(config).bfloat16()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return experts


def transformers_layer(experts, implementation):
    def run(hidden, ids, weights):
        experts.config._experts_implementation = implementation
        return experts(hidden, ids, weights)

    return run, list(experts.parameters())


def contestants(experts, k, inputs):
    """Layers that run and agree with grouped_mm, and why others do not."""
    makers = {
        name: lambda experts, _, name=name: transformers_layer(experts, name)
        for name in OF_TRANSFORMERS
    }
    layers, missing, expected = {}, {}, None
    for name, make in (makers | PEERS).items():
        try:
            layer = make(experts, k)
            with torch.no_grad():
                output = layer[0](*inputs).float()
        except _WHY_NOT as error:
            missing[name] = f"{type(error).__name__}: {str(error)[:160]}"
            continue
        expected = output if expected is None else expected
        difference = ((output - expected).norm() / expected.norm()).item()
        if difference < _TOLERANCE:
            layers[name] = layer
        else:
            missing[name] = f"its output differs by {difference:.3f} of the norm"
    return layers, missing


def step(layer, parameters, inputs, is_training):
    """A function that runs the layer once, with gradients of everything in training."""
    hidden, ids, weights = inputs
    if not is_training:

        @torch.no_grad()
        def forward():
            layer(hidden, ids, weights)

        return forward
    leaves = [hidden.detach().requires_grad_(), weights.detach().requires_grad_()]
    slope = torch.randn_like(hidden)

    def both():
        output = layer(leaves[0], ids, leaves[1])
        torch.autograd.grad(output, [*leaves, *parameters], slope, allow_unused=True)

    return both


def peak_memory(function, device):
    """Bytes beyond what is there already; None on a CPU."""
    if device.type == "cpu":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def dense_product(size, device):
    """A product of square bfloat16 matrices, and its number of operations."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return lambda: left @ right, 2 * size**3


def measure(shape, num_tokens, routing, args, device):
    hidden_size, expert_size, num_experts, k, share = shape
    ids, source = routing.ids(num_experts, k, num_tokens)
    if share > 1:  # tokens of all ranks for the experts of this one, one row per pair
        ids = ids[ids < num_experts // share][:, None]
        num_experts, k = num_experts // share, 1
    ids = ids.to(device)
    hidden = torch.randn(len(ids), hidden_size, device=device).bfloat16()
    weights = torch.rand(ids.shape, device=device).bfloat16()
    inputs = (hidden, ids, weights / weights.sum(-1, keepdim=True))
    experts = make_experts(hidden_size, expert_size, num_experts, device)
    layers, missing = contestants(experts, k, inputs)
    product, product_operations = dense_product(256 if args.tiny else 8192, device)
    rows = hidden.repeat_interleave(k, dim=0)
    copied = torch.empty_like(rows)
    copy_bytes = 2 * rows.nbytes
    result = {"routing": source, "pairs": ids.numel(), "missing": missing}
    for what, factor in (("forward", 1), ("forward and backward", 3)):
        steps = {name: step(*layer, inputs, factor == 3) for name, layer in layers.items()}
        references = {"dense product": product, "copy": lambda: copied.copy_(rows)}
        times = interleaved(steps | references, args.rounds, device)
        operations = factor * 6 * hidden_size * expert_size * ids.numel()
        dense = [product_operations / ms / 1e9 for ms in times["dense product"]]
        result[what] = {
            "dense_teraflops": spread(dense),
            "copy_gigabytes_per_second": spread([copy_bytes / ms / 1e6 for ms in times["copy"]]),
            "layers": {
                name: {
                    "milliseconds": spread(times[name]),
                    "of_grouped_mm": ratios(times[name], times["grouped_mm"]),
                    "teraflops": spread([operations / ms / 1e9 for ms in times[name]]),
                    "of_dense": ratios([operations / ms / 1e9 for ms in times[name]], dense),
                    "peak_bytes": peak_memory(function, device),
                }
                for name, function in steps.items()
            },
        }
    return result


def print_results(name, num_tokens, result):
    print(f"\n{name}, {num_tokens} tokens, {result['pairs']} pairs; routing {result['routing']}")
    for what in ("forward", "forward and backward"):
        part = result[what]
        print(
            f"  {what}: dense {part['dense_teraflops']['median']:.1f} TFLOP/s, "
            f"copy {part['copy_gigabytes_per_second']['median']:.0f} GB/s"
        )
        print_table([{"layer": layer, **row} for layer, row in part["layers"].items()])
    for layer, reason in result["missing"].items():
        print(f"  without {layer}: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 16_384, 32_768])
    args = parser.parse_args()
    device = device_of(args)
    shapes = {name: MODELS[name] for name in args.models}
    if args.tiny:
        shapes, args.tokens, args.rounds = TINY, [128], 3
    torch.manual_seed(0)
    routing = routing_of(args)
    rows = []
    for name, shape in shapes.items():
        for num_tokens in args.tokens:
            result = measure(shape, num_tokens, routing, args, device)
            print_results(name, num_tokens, result)
            rows.append({"model": name, "tokens": num_tokens, **result})
    finish("gpu_layer", "grouped_mm", rows, args, device)


if __name__ == "__main__":
    main()
