"""The search among the best-scored experts, and among all."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from c2r.adapters.huggingface import load_model, load_tokenizer
from c2r.adapters.huggingface import profile as collect
from c2r.planning import make_plan
from c2r.plans import NO_EXPERTS, LayerPlan
from c2r.routing import make_policy
from c2r.text import read_texts, token_batches

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = BENCHMARKS.parent / "src" / "c2r" / "assets" / "tiny"
HELDOUT = TINY / "heldout"


def test_an_expert_beyond_the_candidates_is_found_among_all(monkeypatch):
    """By hand: beside the best expert, its rank has only the last, beyond 3 k = 6.

    With it, the rank keeps (0.5^2 + 0.05^2) / (0.5^2 + 0.1^2) = 0.971, without 0.962; a second rank
    is worth its price of 0.033 in the second case only.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from candidate_cost import all_candidates

    scores = torch.tensor([[0.5, 0.1, 0.09, 0.08, 0.05, 0.07, 0.065, 0.06]])
    policy = make_policy(
        LayerPlan(
            num_experts=8,
            top_k=2,
            policy="priced",
            strength=0.033,
            partners=NO_EXPERTS,
            placement=np.arange(8) % 4,
        )
    )
    assert policy(scores, 2).tolist() == [[0, 1]]
    with all_candidates():
        assert policy(scores, 2).tolist() == [[0, 4]]
    assert policy(scores, 2).tolist() == [[0, 1]]


def test_it_measures_both_ways(tmp_path):
    text, profile, plan = HELDOUT / "code.txt", tmp_path / "profile", tmp_path / "plan"
    model, tokenizer = load_model(str(TINY)), load_tokenizer(str(TINY))
    batches = token_batches(read_texts([text]), tokenizer, seq_len=256, num_tokens=2048)
    found = collect(model, batches)
    found.save(profile)
    make_plan(found, num_ranks=4).save(plan)
    options = ["--profile", profile, "--plan", plan, "--text", text]
    options += ["--tokens", "1024", "--strengths", "0.1"]
    command = [sys.executable, BENCHMARKS / "candidate_cost.py", TINY, *options]
    printed = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    (row,) = json.loads(printed.stdout.splitlines()[-1])["rows"]
    assert 1 < row["copies"] < 3 and abs(row["copies_all"] - row["copies"]) < 0.1
    assert row["over_top_k"] > 0
