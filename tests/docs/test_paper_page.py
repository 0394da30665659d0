"""The figures of docs/paper.md are those of `benchmarks/results/reproduce_paper.json`."""

import json
import re

from tests.docs.blocks import PAGES, ROOT

PAGE = PAGES["docs/paper.md"].read_text(encoding="utf-8")
RESULT = ROOT / "benchmarks" / "results" / "reproduce_paper.json"


def test_tables_and_sentences_are_those_of_the_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # a program: its imports are beside it
    import reproduce_paper

    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    tables, sentences = list(reproduce_paper.tables(rows)), list(reproduce_paper.came_out(rows))
    assert [each for each in (*tables, *sentences) if each not in PAGE] == []
    assert len(re.findall(r"^\|---", PAGE, re.MULTILINE)) == len(tables) + 1


def test_figures_of_the_study_are_its_own():
    costs = []
    for name in ("study_smollm_4", "study_quality_bounded"):
        study = json.loads((RESULT.parent / f"{name}.json").read_text(encoding="utf-8"))
        (tuned,) = (r for r in study["rows"] if (r["case"], r["mode"]) == ("c2r 16", "full"))
        costs.append(f"{100 * tuned['over_control']:.2f} %")
    real, embedded = costs
    said = f"T = 16 costs {real} of the loss over an equally tuned control"
    assert f"{said}, and in the embedded model {embedded}" in PAGE
