"""What it costs that `priced` looks at the 3 k best-scored experts of a token, not at all.

    python benchmarks/candidate_cost.py MODEL --profile FILE --plan FILE --text heldout.txt

Measures the policy on the plan's placement both ways, on the same windows, for each strength.
Prints a table and a JSON line.
"""

import argparse
from contextlib import contextmanager
from pathlib import Path

import torch
from base_model.masked_experts import use_experts
from harness import finish, print_table

from c2r.adapters.huggingface import load_model, load_tokenizer
from c2r.measuring import measure
from c2r.ops.rank_choice import RankRule
from c2r.planning import with_policy
from c2r.plans import Plan
from c2r.profiling import CollaborationProfile
from c2r.text import read_texts, token_batches


@contextmanager
def all_candidates():
    """The search among all experts."""
    usual = RankRule.num_candidates
    RankRule.num_candidates = lambda _, __, num_experts: num_experts
    try:
        yield
    finally:
        RankRule.num_candidates = usual


def cost(model, batches, plan):
    """A row: loss and copies among the candidates, and how they change among all experts."""
    few = measure(model, batches, plan, strict=False)
    with all_candidates():
        every = measure(model, batches, plan, strict=False)
    return {
        "strength": plan.layers[0].strength,
        "over_top_k": few.loss / few.reference.loss - 1,
        "over_top_k_all": every.loss / every.reference.loss - 1,
        "copies": few.copies,
        "copies_all": every.copies,
        "load": few.rank_load_max_over_mean,
        "load_all": every.rank_load_max_over_mean,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--plan", type=Path, required=True, help="whose placement is taken")
    parser.add_argument("--profile", type=Path, required=True, help="that the plan was made from")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    args = parser.parse_args()
    model = load_model(args.model, dtype=torch.bfloat16)
    use_experts(model)
    tokenizer = load_tokenizer(args.model)
    texts = read_texts(args.text)
    batches = list(token_batches(texts, tokenizer, seq_len=512, num_tokens=args.tokens))
    placed, profile = Plan.load(args.plan), CollaborationProfile.load(args.profile)
    plans = [with_policy(placed, profile, "priced", strength) for strength in args.strengths]
    rows = [cost(model, batches, plan) for plan in plans]
    print_table(rows)
    settings = vars(args) | {"text": [path.name for path in args.text]}
    finish("candidate_cost", "the 3 k best-scored experts", rows, settings)


if __name__ == "__main__":
    main()
