"""`c2r report`, and what `c2r inspect` and `c2r traffic` draw in a terminal."""

import json
import re

import pytest

from c2r.cli.console import print_table
from c2r.planning import make_plan
from tests.cli.test_cli import assert_refused, call, call_json
from tests.reporting.profiles import clustered_profile, sweep_document


@pytest.fixture
def files(tmp_path):
    """A profile, a plan and a sweep."""
    profile = clustered_profile(num_experts=96)
    profile.save(tmp_path / "profile")
    make_plan(profile, num_ranks=4).save(tmp_path / "plan")
    (tmp_path / "sweep").write_text(json.dumps(sweep_document()))
    return [tmp_path / name for name in ("profile", "plan", "sweep")]


def test_report(capsys, files, tmp_path):
    page, figures = tmp_path / "r.html", tmp_path / "figures"
    found = call_json(capsys, "report", *files, "--out", page, "--figures", figures)
    assert [source["kind"] for source in found["sources"]] == ["profile", "plan", "sweep"]
    assert found["bytes"] == page.stat().st_size
    assert found["answers"][1]["number"] == "2.40"
    assert {"question", "number", "unit", "text"} <= set(found["answers"][0])
    assert found["verdict"]["bars"][0]["total"] > 0
    drawn = {path.name for path in figures.iterdir()}
    assert {"quality.png", "quality.svg", "collaboration.png"} <= drawn
    assert len(found["figures"]) == len(drawn)
    status, out, err = call(capsys, "report", *files, "--out", page, "--force")
    assert status == 0 and "How collaborative" in out and f"wrote {page}" in err


def test_mistakes(capsys, files, tmp_path):
    profile, plan, _ = files
    page = ["--out", tmp_path / "r.html"]
    assert_refused(capsys, ["Missing argument 'files'"], "report")
    assert_refused(capsys, ["No such file"], "report", tmp_path / "none", *page)
    assert_refused(capsys, ["both a plan"], "report", plan, plan, *page)
    nowhere = tmp_path / "no" / "r.html"
    assert_refused(capsys, ["choose a folder"], "report", profile, "--out", nowhere)
    assert_refused(capsys, ["cannot write figures"], "report", profile, *page, "--figures", plan)
    page.append("--force")  # for the page is written before its figures are
    (tmp_path / "other.json").write_text('{"answer": 42}')
    assert_refused(capsys, ["JSON of a kind"], "report", tmp_path / "other.json", *page)
    assert_refused(
        capsys, ["files are for 4 ranks", "8 on 1"], "report", *files, *page, "--cluster", "h100-8"
    )
    assert_refused(capsys, ["--phase x"], "report", profile, *page, "--phase", "x")
    assert_refused(capsys, ["--layer 3", "0 to 2"], "inspect", profile, "--layer", 3)


def test_the_demo_ends_with_a_report(capsys, tmp_path):
    found = call_json(capsys, "demo", "--tokens", 1024, "--out", tmp_path / "demo")
    assert found["report"] == str(tmp_path / "demo" / "report.html")
    page = (tmp_path / "demo" / "report.html").read_text()
    table = re.search(r'<table id="table-quality">(.*?)</table>', page)[1]
    shown = set(map(float, re.findall(r'data-value="([^"]+)"', table)))
    assert {row["copies"] for row in found["rows"][2:]} <= shown
    assert "(the plan given)" in page


@pytest.fixture
def print_in_terminal(capsys, monkeypatch):
    """What a command prints where rich is told of a terminal of 80 columns, or of none."""

    def print_in_terminal(arguments, **environment):
        with monkeypatch.context() as patch:
            for name in ("NO_COLOR", "FORCE_COLOR"):
                patch.delenv(name, raising=False)
            for name, value in {"TERM": "xterm-256color", **environment}.items():
                patch.setenv(name, value)
            status, out, _ = call(capsys, *arguments)
        assert status == 0
        return out

    return print_in_terminal


def commands(files):
    profile, plan, _ = files
    return ["inspect", profile], ["inspect", plan], ["traffic", profile, "--plan", plan]


def test_terminals_get_colour_and_pipes_do_not(files, print_in_terminal):
    for command in commands(files):
        assert "\x1b" not in print_in_terminal(command)
        assert not re.search(
            r"\x1b\[[34]", print_in_terminal(command, FORCE_COLOR="1", NO_COLOR="1")
        )
    for command in commands(files)[::2]:
        assert "\x1b[38;" in print_in_terminal(command, FORCE_COLOR="1")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(files, print_in_terminal, width):
    for command in commands(files):
        printed = print_in_terminal(command, FORCE_COLOR="1", COLUMNS=str(width))
        lines = re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()
        assert max(map(len, lines)) <= width


def test_heat_maps_show_which_experts_go_together(capsys, files):
    _, out, _ = call(capsys, "inspect", files[0], "--layer", 1)
    assert "Tokens of each expert" in out
    lines = out.split("Tokens that chose both experts, layer 1\n")[1].splitlines()[:32]
    assert lines[1].startswith(" expert 3 ") and lines[31].startswith("expert 93 ")
    cells = [line[len("expert 93 ") :: 2] for line in lines]
    assert {len(row) for row in cells} == {55}  # 120 columns, less the names, two to a cell
    for index, row in enumerate(cells):  # neighbours share tokens, experts far apart none
        assert row[55 * index // 32] != " " and row[55 * ((index + 16) % 32) // 32] == " "


def test_names_like_markup_are_printed_as_they_are(capsys):
    print_table("[/b]:smile:", ["name"], [["[/b]:smile:"]])
    assert capsys.readouterr().out.count("[/b]:smile:") == 2


def test_heat_maps_show_which_ranks_receive(capsys, files):
    arguments = ["traffic", files[0], "--plan", files[1]]
    ranks = call_json(capsys, *arguments)["rows_to_ranks"]
    mean = call_json(capsys, *arguments)["mean"]
    assert sum(ranks["placed"]) == pytest.approx(mean["copies_placed"])
    _, out, _ = call(capsys, *arguments)
    lines = out.split("Rows of a token to each rank\n")[1].splitlines()
    for line, name in zip(lines, ("in order", "placed"), strict=False):
        assert line.startswith(f"{name:>8} ") and len(line) == 9 + 8
    assert "rows" in lines[2]
