"""What benchmarks share, by hand; and that programs print a table and the one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness

BENCHMARKS = Path(harness.__file__).parent
KEYS = {"benchmark", "baseline", "rows", "settings", "versions", "machine", "commit"}


def test_every_round_measures_all_sides_and_warm_ups_do_not_count():
    called = []

    def measure(side):
        called.append(side)
        return len(called)

    figures = harness.interleave({"a": "A", "b": "B"}, 2, measure, num_warm_ups=1)
    assert "".join(called) == "ABABAB"
    assert figures == {"a": [3, 5], "b": [4, 6]}


def test_seconds_are_those_of_the_clock():
    ticks = iter([10.0, 12.5])
    assert harness.seconds_of(lambda: None, lambda: next(ticks)) == 2.5


def test_rows_by_hand():
    """A round that is ten times slower on both sides does not move the ratio."""
    plain, ours = harness.compare({"plain": [1, 10, 2], "ours": [2, 20, 4]}, "plain", "policy", "s")
    assert plain == {
        "policy": "plain",
        "s": {"median": 2, "lower": 1.5, "upper": 6},
        "ratio": {"median": 1, "lower": 1, "upper": 1},
    }
    assert ours["ratio"] == {"median": 2, "lower": 2, "upper": 2}


def test_the_table(capsys):
    spread = {"median": 2.0, "lower": 1.5, "upper": 6.0}
    rows = [{"side": "plain", "s": spread, "share": 0.5}, {"side": "ours", "s": None, "share": 1}]
    harness.print_table(rows)
    assert capsys.readouterr().out.splitlines() == [
        " side          s   share",
        "plain  2 (1.5-6)  0.5000",
        " ours       None       1",
    ]
    harness.print_table(rows, ("share",))
    assert capsys.readouterr().out.splitlines() == [" share", "0.5000", "     1"]


def test_the_line_is_json_whatever_the_figures(capsys):
    settings = {"folder": Path("/somewhere/else"), "rounds": 3}
    harness.finish("speed", "plain", [{"ratio": float("nan")}], settings, synthetic=True)
    (line,) = capsys.readouterr().out.splitlines()
    document = json.loads(line)
    assert set(document) == KEYS | {"synthetic"}
    assert document["rows"] == [{"ratio": None}]
    assert document["settings"] == {"folder": "else", "rounds": 3}
    assert {"python", "c2r-moe", "torch"} <= set(document["versions"])
    assert document["machine"]["cores"] > 0 and document["machine"]["memory_gigabytes"] > 0


@pytest.mark.parametrize(
    ("program", "options", "num_rows"),
    [
        ("policy_cost", "--experts 16 --k 2 --ranks 4 --tokens 64 --rounds 2", 7),
        ("profile_overhead", "--hidden-size 64 --rounds 2 --batches 1", 2),
        ("placement_quality", "--ranks 2 --runs 1 --tokens 1024", 4),
    ],
)
def test_a_program_prints_a_table_and_the_line(program, options, num_rows):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{program}.py", *options.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    document = json.loads(line)
    assert set(document) >= KEYS and document["benchmark"] == program
    assert len(document["rows"]) == num_rows and len(table) >= num_rows + 1
    assert set(table[-num_rows - 1].split()) <= set(document["rows"][0])
