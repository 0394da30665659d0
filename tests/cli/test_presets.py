"""`c2r clusters` as a user runs it."""

from c2r.prediction import PRESETS
from tests.cli.test_cli import call, call_json


def test_all_clusters_with_a_name_are_listed(capsys):
    status, out, _ = call(capsys, "clusters")
    assert status == 0
    for cluster in PRESETS.values():
        assert cluster.name in out and cluster.source[:40] in " ".join(out.split())
    (row,) = [line for line in out.splitlines() if " hosts-4-10g " in line and "│" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")][1:5] == ["4", "4", "", "1"]
    found = call_json(capsys, "clusters")["clusters"]
    assert {each["name"]: each["outer_gigabytes"] for each in found} == {
        name: cluster.outer_gigabytes for name, cluster in PRESETS.items()
    }


def test_the_help_of_plan_leads_there(capsys):
    out = call(capsys, "plan", "--help")[1]
    assert "c2r clusters" in " ".join(out.split())
