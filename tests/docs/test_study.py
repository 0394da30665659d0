"""The tables of the study about the real model are those of the kept results."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import study_tables

    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    missing = [name for name, table in study_tables.tables().items() if table not in page]
    assert missing == []
