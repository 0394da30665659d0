"""Compiles every Triton kernel for a GPU that need not be there, and tells what each takes of it.

    python benchmarks/kernel_resources.py --arch 90

The operations run on tensors without storage (torch's meta device), with shapes of real models;
where they would start a kernel, it is compiled with the types, sizes and alignments of its
arguments, to machine code. Prints a table and a JSON line: registers per thread, bytes spilled to
local memory, bytes of shared memory. What this does not tell: how fast they are.
"""

import argparse
import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import torch
import triton
from harness import finish, print_table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.knobs import nvidia
from triton.runtime.jit import JITFunction, mangle_type

from c2r.ops.coactivation import triton as coactivation
from c2r.ops.constrained_topk import triton as constrained_topk
from c2r.ops.copy_rows import RowCopies
from c2r.ops.copy_rows import triton as copying
from c2r.ops.dispatch_layout import triton as dispatch_layout
from c2r.ops.gated_activation import triton as gated_activation
from c2r.ops.rank_choice import Criterion, RankRule, RankTables
from c2r.ops.rank_choice import triton as rank_choice
from c2r.ops.sum_copies import triton as summing

MODELS = {  # tokens, experts, k, ranks, hidden size
    "Qwen1.5-MoE": (16_384, 60, 4, 4, 2048),
    "Qwen3-30B": (16_384, 128, 8, 16, 2048),
    "DeepSeek-V3": (16_384, 256, 8, 32, 7168),
    "512 experts": (16_384, 512, 16, 64, 4096),
    "one of each": (1, 1, 1, 1, 1),
}


class Compiler:
    """Stands where kernels are started; `of` is the model whose shapes are used."""

    def __init__(self, arch):
        self.target = GPUTarget("cuda", arch, 32)
        self.rows = []
        self.of = ""

    def compile(self, kernel, *args, **options):
        constants = {p.name: options.pop(p.name) for p in kernel.params if p.name in options}
        signature, aligned = {}, {}
        for index, parameter in enumerate(kernel.params):
            if parameter.name in constants:
                signature[parameter.name] = "constexpr"
                continue
            value = args[index]
            may_specialise = not parameter.do_not_specialize
            if may_specialise and isinstance(value, int) and value == 1:  # as when it is started
                constants[parameter.name], signature[parameter.name] = 1, "constexpr"
                continue
            signature[parameter.name] = mangle_type(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                aligned[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=self.target, options=options)
        name = f"{kernel.__module__.split('.')[-2]}.{kernel.__name__}"
        usage = resources(compiled.asm["cubin"]) | {"shared": compiled.metadata.shared}
        usage["rounds_to_bfloat16"] = "cvt.rn.bf16" in compiled.asm["ptx"]
        usage["has_float_atomics"] = bool(re.search(r"(atom|red)\.\S*\.f", compiled.asm["ptx"]))
        self.rows.append({"kernel": name, "shapes": self.of, **usage})


def resources(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        report = subprocess.run(
            [nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, stack, local = (
        int(re.search(rf"{what}:(\d+)", report)[1]) for what in ("REG", "STACK", "LOCAL")
    )
    return {"registers": registers, "spilled": stack + local}


def empty(*shape, dtype=torch.bfloat16, **options):
    return torch.empty(*shape, dtype=dtype, device="meta", **options)


def integers(*shape):
    return empty(*shape, dtype=torch.int64)


def move_rows(num_tokens, k, width):
    pairs = num_tokens * k
    copies = RowCopies(source=integers(pairs), members=integers(pairs), starts=integers(num_tokens))
    weights = empty(pairs, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float64):
        hidden, rows = empty(num_tokens, width, dtype=dtype), empty(pairs, width, dtype=dtype)
        copying.copy_rows(hidden, copies)
        summing.sum_copies(rows, copies)
        summing.sum_copies(rows, copies, weights)
        summing.sum_copies_backward(hidden, rows, copies, weights)
        gated = empty(pairs, 2 * width, dtype=dtype, requires_grad=True)
        activated = gated_activation.silu_gated(gated)
        activated.backward(torch.empty_like(activated))


def choose_experts(num_tokens, num_experts, k, num_ranks):
    pairs = num_tokens * k
    coactivation.count_pairs(integers(num_tokens, k), num_experts)
    coactivation.count_pairs(
        integers(num_tokens, k), num_experts, empty(num_tokens, k, dtype=torch.bool)
    )
    dispatch_layout.sort_by_expert(integers(pairs), integers(pairs), num_tokens, num_experts)
    dispatch_layout.one_row_per_destination(integers(pairs), integers(pairs), num_ranks)
    logits = empty(num_tokens, num_experts, requires_grad=True)
    allowed = empty(num_experts, num_experts, dtype=torch.bool)
    mask = empty(num_tokens, num_experts, dtype=torch.bool)
    constrained_topk.choose_constrained(logits, allowed, k)
    constrained_topk.choose_constrained(logits, allowed, k, mask)
    constrained_topk.choose_among(logits, mask, k)
    constrained_topk.choose_among(logits, mask, k, mask, integers(num_tokens, 1))
    for function in ("softmax", "sigmoid"):
        for normalized in (False, True):
            _, chosen = constrained_topk.route_constrained(logits, allowed, k, function, normalized)
            chosen.backward(torch.empty_like(chosen))
    tables = RankTables(
        placement=integers(num_experts),
        experts_by_rank=integers(num_ranks, -(-num_experts // num_ranks)),
        members=empty(num_ranks + 1, num_experts, dtype=torch.float32),
        reach=empty(0, num_ranks + 1, dtype=torch.bool),
    )
    for criterion in Criterion:
        rule = RankRule(
            criterion=criterion,
            strength=4 if criterion is Criterion.GROUP_LIMITED else 0.1,
            num_ranks=num_ranks,
            smallest_rank=num_experts // num_ranks,
            is_logits=criterion in (Criterion.BUDGETED, Criterion.GROUP_LIMITED),
        )
        scores = empty(num_tokens, num_experts, dtype=torch.float32)
        rank_choice.choose_on_ranks(scores, tables, k, rule)


def most_of_each(rows):
    """A row for each kernel and shapes: the most that any of its variants takes."""
    most = {}
    for row in rows:
        key = row["kernel"], row["shapes"]
        before = most.setdefault(key, dict(row))
        most[key] = before | {
            name: max(before[name], row[name]) for name in ("registers", "spilled", "shared")
        }
    columns = ("kernel", "shapes", "registers", "spilled", "shared")
    return [{name: row[name] for name in columns} for row in most.values()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 90 for 9.0")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    compiler = Compiler(args.arch)
    JITFunction.__getitem__ = lambda kernel, _grid: partial(compiler.compile, kernel)
    for model in args.models:
        compiler.of = model
        num_tokens, num_experts, k, num_ranks, width = MODELS[model]
        move_rows(num_tokens, k, width)
        choose_experts(num_tokens, num_experts, k, num_ranks)
    print_table(most_of_each(compiler.rows))
    finish("kernel_resources", "nothing spilled", compiler.rows, vars(args))


if __name__ == "__main__":
    main()
