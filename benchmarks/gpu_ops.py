"""What the index and row kernels take, against what the memory allows and what torch offers.

    python benchmarks/gpu_ops.py
    python benchmarks/gpu_ops.py --profile profile.safetensors --experts 60 --k 4

Row operations: bytes that must be read and written at least, a second, as a share of what a copy
within the device reaches in the same rounds. Choices: time relative to plain softmax, topk and
renormalisation in torch. Everything is interleaved, and caches are cold. Prints a table and a JSON
line. On a machine without a GPU, `--device cpu --tiny` tries the program and claims nothing.
"""

import argparse

import torch
from gpu import add_arguments, device_of, finish, interleaved, routing_of
from harness import compare, print_table, ratios, spread

from c2r.ops.coactivation import count_pairs
from c2r.ops.constrained_topk import allowed_experts, choose_constrained, route_constrained
from c2r.ops.copy_rows import copy_rows
from c2r.ops.dispatch_layout import one_row_per_destination, sort_by_expert
from c2r.ops.gated_activation import silu_gated
from c2r.ops.rank_choice import Criterion, RankRule, RankTables, choose_on_ranks
from c2r.ops.sum_copies import sum_copies, sum_copies_backward


def row_operations(args, ids, device):
    """Functions and the bytes that they must move."""
    num_tokens, k = ids.shape
    rows = torch.arange(num_tokens, device=device).repeat_interleave(k)
    copies, _ = sort_by_expert(rows, ids.flatten(), num_tokens, args.experts)
    hidden = torch.randn(num_tokens, args.width, device=device).bfloat16()
    output = copy_rows(hidden, copies)
    weights = torch.rand(num_tokens * k, device=device)
    one, all_copies, index = hidden.nbytes, output.nbytes, copies.members.nbytes
    large = torch.empty_like(output)
    return {
        "device copy": (lambda: large.copy_(output), 2 * all_copies),
        "copy_rows": (lambda: copy_rows(hidden, copies), one + all_copies + index),
        "sum_copies": (lambda: sum_copies(output, copies), one + all_copies + index),
        "sum_copies, weighted": (
            lambda: sum_copies(output, copies, weights),
            one + all_copies + index + weights.nbytes,
        ),
        "sum_copies_backward": (
            lambda: sum_copies_backward(hidden, output, copies, weights),
            one + 2 * all_copies + index + 2 * weights.nbytes,
        ),
        "silu_gated": (lambda: silu_gated(output), all_copies + all_copies // 2),
    }


def index_operations(args, ids, device):
    """Functions by name, the torch reference of each beside it."""
    from c2r.ops.coactivation import reference as coactivation
    from c2r.ops.dispatch_layout import reference as layout

    num_tokens, k = ids.shape
    rows = torch.arange(num_tokens, device=device).repeat_interleave(k)
    flat = ids.flatten()
    ranks = flat % args.ranks
    sort = (rows, flat, num_tokens, args.experts)
    return {
        "sort_by_expert": (
            lambda: sort_by_expert(*sort),
            lambda: layout.sort_by_expert(*sort),
        ),
        "one_row_per_destination": (
            lambda: one_row_per_destination(rows, ranks, args.ranks),
            lambda: layout.one_row_per_destination(rows, ranks, args.ranks),
        ),
        "count_pairs": (
            lambda: count_pairs(ids, args.experts),
            lambda: coactivation.count_pairs(ids, args.experts),
        ),
    }


def choices(args, device):
    """Functions by name; the first is the baseline."""
    logits = torch.randn(args.tokens, args.experts, device=device)
    lists = torch.rand(args.experts, args.experts, device=device).fill_diagonal_(2).argsort(-1)
    allowed = allowed_experts(lists[:, :-1], args.experts // 2)

    def plain():
        weights, ids = logits.softmax(-1).topk(args.k, dim=-1)
        return ids, weights / weights.sum(-1, keepdim=True)

    placement = torch.arange(args.experts, device=device) % args.ranks
    tables = RankTables.of(placement)

    def on_ranks(criterion):
        rule = RankRule(
            criterion=criterion,
            strength=max(1, args.ranks // 2) if criterion is Criterion.GROUP_LIMITED else 0.1,
            num_ranks=args.ranks,
            smallest_rank=args.experts // args.ranks,
            is_logits=True,
        )
        return lambda: choose_on_ranks(logits, tables, args.k, rule)

    return {
        "torch: softmax, topk, renormalised": plain,
        "choose_constrained": lambda: choose_constrained(logits, allowed, args.k),
        "route_constrained": lambda: route_constrained(logits, allowed, args.k, "softmax", True),
        **{f"choose_on_ranks, {criterion}": on_ranks(criterion) for criterion in Criterion},
    }


def report_rows(operations, args, device):
    times = interleaved({name: f for name, (f, _) in operations.items()}, args.rounds, device)
    rates = {
        name: [num_bytes / ms / 1e6 for ms in times[name]]
        for name, (_, num_bytes) in operations.items()
    }
    rows = [
        {
            "operation": name,
            "milliseconds": spread(times[name]),
            "gigabytes_per_second": spread(rates[name]),
            "share_of_copy": ratios(rates[name], rates["device copy"]),
        }
        for name in operations
    ]
    print_table(rows)
    return rows


def report_pairs(pairs, args, device):
    """Each operation relative to its reference in torch."""
    rows = []
    for name, (ours, theirs) in pairs.items():
        times = interleaved({name: ours, "torch": theirs}, args.rounds, device)
        rows.append(compare(times, "torch", "operation", "milliseconds")[0])
    print_table(rows)
    return rows


def report_choices(functions, args, device):
    times = interleaved(functions, args.rounds, device)
    rows = compare(times, next(iter(functions)), "operation", "milliseconds")
    print_table(rows)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=8)
    args = parser.parse_args()
    device = device_of(args)
    if args.tiny:
        args.tokens, args.width, args.experts, args.k, args.ranks = 256, 64, 16, 4, 4
        args.rounds = 3
    torch.manual_seed(0)
    ids, source = routing_of(args).ids(args.experts, args.k, args.tokens)
    ids = ids.to(device)
    print(f"routing: {source}")
    found = {
        "rows": report_rows(row_operations(args, ids, device), args, device),
        "index": report_pairs(index_operations(args, ids, device), args, device),
        "choices": report_choices(choices(args, device), args, device),
    }
    rows = [{"kind": kind, **row} for kind, part in found.items() for row in part]
    baseline = "rows: a copy on the device; index: the reference; choices: plain top-k in torch"
    finish("gpu_ops", baseline, rows, args, device, routing=source)


if __name__ == "__main__":
    main()
