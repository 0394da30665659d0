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

MAKES = {
    "32 and a shared one": ("study_smollm_4.json", "study_smollm_modes.json"),
    "8": ("study_smollm_coarse.json", "study_smollm_coarse_tuned.json"),
}
"""Studies of two models that one command made, on two machines, by their experts."""


def makes_table():
    """What one constraint costs and sends in both, in Markdown."""
    lines = ["| experts | tuning | routing | over its control | copies | load |"]
    lines.append("|---" * 6 + "|")
    for experts, files in MAKES.items():
        one, other = (
            {(study_quality.tuning(row), row["case"]): row for row in _read(name)["rows"]}
            for name in files
        )
        for tuning, case in one:
            if (tuning, case) not in other or case in ("control", study_quality.CONTIGUOUS):
                continue
            pair = one[tuning, case], other[tuning, case]
            cells = (
                " and ".join(f"{row[name]:{form}}" for row in pair)
                for name, form in (
                    ("over_control", "+.2%"),
                    ("copies", ".2f"),
                    ("rank_load_max_over_mean", ".2f"),
                )
            )
            lines.append(f"| {experts} | {tuning} | {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables():
    """Each table, by the file that its figures are in; of two makes, from several."""
    made = {name: make(_rows(_read(name))) for name, make in TABLES.items()}
    return made | {"two makes": makes_table()}


def _rows(result):
    return result["cases"] if "cases" in result else result["rows"]


def _read(name):
    return json.loads((RESULTS / name).read_text())


if __name__ == "__main__":
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")
