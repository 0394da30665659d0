"""The walk through in docs/engines.md is what the commands do."""

import re
from pathlib import Path

from c2r.cli import run

DOCS = Path(__file__).parents[2] / "docs" / "engines.md"


def test_the_road_on_the_embedded_model(tmp_path, monkeypatch):
    text = DOCS.read_text(encoding="utf-8")
    section = text.partition("## The road, on the embedded model")[2].partition("\n## ")[0]
    lines = re.findall(r"^    c2r (.+)$", section, re.MULTILINE)
    assert len(lines) == 9
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert run(line.split()) == 0, line
    assert (tmp_path / "undone" / "model.safetensors").is_file()


def test_every_option_in_the_docs_exists(capsys):
    text = DOCS.read_text(encoding="utf-8")
    for command, options in re.findall(
        r"\bc2r (import|export|permute|plan|profile) ([^`\n]*)", text
    ):
        run([command, "--help"])
        known = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in known, f"c2r {command} {option}"
