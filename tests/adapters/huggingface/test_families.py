from pathlib import Path

import pytest

from tests.adapters.huggingface.checks import check_family
from tests.adapters.huggingface.families import FAMILIES, Family

TABLE = Path(__file__).parents[3] / "docs" / "families.md"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family: Family) -> None:
    check_family(family)


def test_the_table_in_the_docs_names_every_configuration() -> None:
    table = TABLE.read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[1:] == [family.name for family in FAMILIES]
    assert f"{len(FAMILIES)} of {len(FAMILIES)} configurations pass" in table
