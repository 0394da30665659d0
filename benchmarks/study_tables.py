"""Prints the tables of docs/study.md about the real model, from kept results.

python benchmarks/study_tables.py
"""

import json
from pathlib import Path

import study_divergence
import study_quality
import study_tasks

RESULTS = Path(__file__).parent / "results"
TABLES = {
    "study_smollm_4.json": study_quality.table,
    "study_smollm_8.json": study_quality.table,
    "study_smollm_coarse.json": study_quality.table,
    "study_smollm_divergence.json": study_divergence.table,
    "study_smollm_tasks.json": study_tasks.table,
}


def tables():
    """Each table, by the file that its figures are in."""
    rows = {name: json.loads((RESULTS / name).read_text())["rows"] for name in TABLES}
    return {name: make(rows[name]) for name, make in TABLES.items()}


if __name__ == "__main__":
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")
