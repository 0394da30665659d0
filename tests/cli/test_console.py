import re
import shutil
import subprocess
import sys

import pytest

from c2r.assets import tiny_folder
from c2r.cli import console
from c2r.cli.console import ProgressLines, duration, note, print_table, progress_bar, quieted

COLUMNS = ["case", "loss", "ms", "predicted", "of the first", "index", "out", "compute", "load"]
ROWS = [
    [f"once per rank, placed, priced 0.0{i}", 1.07 + i, 425 * i, "410", "0.55 (0.55-0.56)", "12",
     "1,234,567", "+0.53 %", 1.06 * i]
    for i in range(1, 4)
]  # fmt: skip


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of so many columns."""

    def terminal(width):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))

    return terminal


def printed(capsys):
    return re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("width", [50, 60, 80, 100, 140])
def test_tables_fit_the_terminal_with_all_their_digits(capsys, terminal, width):
    terminal(width)
    print_table("One layer", COLUMNS, ROWS)
    out = printed(capsys)
    assert max(map(len, out.splitlines())) <= width and "\u2026" not in out
    for row in ROWS:
        for value in row[1:]:
            assert (f"{value:.3f}" if isinstance(value, float) else str(value)) in out
    assert all(word in out for name in COLUMNS for word in name.split())
    assert ("One layer (more)" in out) == (width < 100)


def test_a_table_without_rows_and_one_of_long_words(capsys, terminal):
    terminal(40)
    print_table("Empty", ["layer", "all"], [])
    print_table("Long", ["layer", "experts"], [[1, " ".join(map(str, range(100)))]])
    out = printed(capsys)
    assert max(map(len, out.splitlines())) <= 40
    assert all(str(number) in out for number in range(100))


def test_progress_in_a_pipe_is_a_line_a_minute_with_rate_and_time_left():
    now, lines = [100.0], []
    progress = ProgressLines("profiling, tokens", 100_000, lambda: now[0], lines.append)
    progress.resume(20_000)
    for second in range(1, 131):
        now[0] = 100.0 + second
        progress(500)
    assert lines == [
        "profiling, tokens: 25,000 of 100,000 (25 %), 500 a second, 2 min left",
        "profiling, tokens: 30,000 of 100,000 (30 %), 500 a second, 2 min left",
        "profiling, tokens: 40,000 of 100,000 (40 %), 500 a second, 2 min left",
        "profiling, tokens: 60,000 of 100,000 (60 %), 500 a second, 80 s left",
    ]
    assert progress.reached == 85_000


def test_progress_of_unknown_length():
    now, lines = [0.0], []
    progress = ProgressLines("running, tokens", None, lambda: now[0], lines.append)
    now[0] = 20.0
    progress(30)
    progress.reach(40, description="never told")
    assert lines == ["running, tokens: 30, 1.5 a second"]


def test_progress_of_one_thing_after_another():
    now, lines = [0.0], []
    progress = ProgressLines("planning, layers", 30, lambda: now[0], lines.append)
    now[0] = 20.0
    progress(30)
    progress.restart(30, "with 2 replicas a rank, layers")
    for second in (25.0, 32.0):
        now[0] = second
        progress(6)
    assert lines == [
        "planning, layers: 30 of 30 (100 %), 1.5 a second, 0 s left",
        "with 2 replicas a rank, layers: 12 of 30 (40 %), 1 a second, 18 s left",
    ]


def test_only_the_first_rank_shows_its_progress(monkeypatch):
    with progress_bar("a", 1) as advance:
        assert isinstance(advance, ProgressLines)
    monkeypatch.setattr(console, "is_first_process", lambda: False)
    with progress_bar("a", 1) as advance:
        assert not isinstance(advance, ProgressLines)
        advance.reach(3)
    assert advance.reached == 3


def test_quiet_keeps_notes_back_and_not_warnings(capsys):
    with quieted(True):
        note("a note")
        console.complain("a warning")
        with progress_bar("a", 1) as advance:
            assert not isinstance(advance, ProgressLines)
    note("after")
    assert capsys.readouterr().err == "a warning\nafter\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (89, "89 s"), (91, "2 min"), (7200, "2.0 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_no_bars_of_other_libraries_and_one_line_on_what_is_to_be_done(tmp_path):
    """A real process: what is asked of tqdm must be asked before it is imported."""
    shutil.copytree(tiny_folder(), tmp_path / "model")
    command = [sys.executable, "-m", "c2r", "profile", "model", "--out", "p.safetensors"]
    limits = ["--tokens", "256", "--seq-len", "64", "--batch-size", "2"]
    done = subprocess.run(
        [*command, *limits], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if " a second" not in line]
    told, runs, work, wrote = lines  # but for progress, on a slow machine
    assert told.startswith("no --text") and runs.startswith("model runs on cpu in bfloat16")
    assert work == "profiling up to 256 tokens: 4 windows of up to 64, 2 at a time"
    assert wrote.startswith("wrote p.safetensors") and done.returncode == 0
