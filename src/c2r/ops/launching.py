"""Starting Triton kernels, and the code that several of them share."""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *args: Any, **options: Any) -> None:
    """Runs `kernel` on the device of `first`, its first argument; an empty grid runs nothing.

    Products and sums are not fused: kernels wait for memory anyhow, and results are those of the
    definition, rounding by rounding.
    """
    if 0 in grid:
        return
    on_device = torch.cuda.device(first.device) if first.is_cuda else nullcontext()
    with on_device:
        kernel[grid](first, *args, enable_fp_fusion=False, **options)


@triton.jit
def sort_keys(scores, tiers, experts):
    """int64 keys that order experts: by tier, then score (NaN highest), then lower id.

    `scores` are float32. Keys are not negative, so that -1 is below all. In bits: tier from 48 up,
    score in 16 to 47, complement of the id in 0 to 15. One maximum of one integer then settles
    ties, NaN, allowed lists and group limits at once.
    """
    # Bits of a float grow with its value if it is positive, and fall if it is negative. Turning the
    # lower 31 bits of negative ones makes them grow for all; adding 2^31 makes them non-negative.
    scores = tl.where(scores != scores, float("nan"), scores) + 0.0  # one NaN, one zero
    bits = scores.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 0x80000000
    return (tiers.to(tl.int64) << 48) + (ordered << 16) + (0xFFFF - experts)


@triton.jit
def expert_of(keys):
    """The id within a key of `sort_keys`, int64."""
    return 0xFFFF - (keys & 0xFFFF)


@triton.jit
def score_of(keys):
    """The score within a key of `sort_keys`."""
    ordered = (((keys >> 16) & 0xFFFFFFFF) - 0x80000000).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def load_scores(scores, num_tokens, num_experts, TOKENS: tl.constexpr, EXPERTS: tl.constexpr):
    """Tokens `[TOKENS, 1]`, experts `[1, EXPERTS]` and scores; tokens beyond are the last again."""
    # A row of nothing but -inf would give NaN on the way; a real row read again is harmless.
    tokens = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    experts = tl.arange(0, EXPERTS)[None, :]
    at = tl.minimum(tokens, num_tokens - 1) * num_experts + experts
    score = tl.load(scores + at, mask=experts < num_experts, other=-float("inf"))
    return tokens, experts, score.to(tl.float32)


@triton.jit
def span(starts, source, num_sources, num_copies):
    """Where the copies of a source begin and end within the members; counts not specialised."""
    end = num_copies.to(tl.int64)
    if source + 1 < num_sources:
        end = tl.load(starts + source + 1)
    return tl.load(starts + source), end


@triton.jit
def store_best(ids, keys, tokens, num_tokens, K: tl.constexpr):
    """Writes the experts of the K highest of each token's keys `[TOKENS, EXPERTS]`, best first."""
    for place in range(K):
        best = tl.max(keys, axis=1)[:, None]
        tl.store(ids + tokens * K + place, expert_of(best), mask=tokens < num_tokens)
        keys = tl.where(keys == best, -1, keys)
