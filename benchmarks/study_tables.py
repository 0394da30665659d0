"""Prints the tables of docs/study.md about the real model, from kept results.

python benchmarks/study_tables.py
"""

import json
from pathlib import Path

import study_divergence
import study_quality
import study_tasks

from c2r.prediction.rows import DISPATCH_WORDS

RESULTS = Path(__file__).parent / "results"


def times_table(cases):
    """What `expert_parallel.py` measured, in Markdown; times are ratios to the first case's."""
    first = cases[0]["predicted"]["total"]
    lines = ["| a token is sent | time (quartiles) | predicted | load | rows |", "|---" * 5 + "|"]
    for case in cases:
        dispatcher, time = case["case"]["dispatcher"], case["ratio"]
        name = case["case"]["name"].replace(dispatcher, DISPATCH_WORDS[dispatcher])
        lines.append(
            f"| {name} | {time['median']:.2f} ({time['lower']:.2f} to {time['upper']:.2f}) | "
            f"{case['predicted']['total'] / first:.2f} | {case['rank_load_max_over_mean']:.2f} | "
            f"{case['rows_received']:,.0f} |"
        )
    return "\n".join(lines)


TABLES = {
    "study_smollm_4.json": study_quality.table,
    "study_smollm_8.json": study_quality.table,
    "study_smollm_coarse.json": study_quality.table,
    "study_smollm_divergence.json": study_divergence.table,
    "study_smollm_modes.json": study_quality.table,
    "study_smollm_coarse_tuned.json": study_quality.table,
    "study_smollm_tasks.json": study_tasks.table,
    "study_smollm_tasks_tuned.json": study_tasks.table,
    "study_smollm_times.json": times_table,
}


def tables():
    """Each table, by the file that its figures are in."""
    made = {}
    for name, make in TABLES.items():
        result = json.loads((RESULTS / name).read_text())
        made[name] = make(result.get("rows") or result["cases"])
    return made


if __name__ == "__main__":
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")
