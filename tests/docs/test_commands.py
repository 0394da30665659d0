"""The table of commands and functions in docs/reference/commands.md holds."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

import c2r
from c2r.cli import app
from tests.docs.blocks import PAGES

TEXT = PAGES["docs/reference/commands.md"].read_text(encoding="utf-8")
TABLE = dict(re.findall(r"^\| `c2r ([\w-]+)` \| `c2r\.(\w+)` \|$", TEXT, re.MULTILINE))


def test_every_command_is_a_function_or_is_said_to_be_none():
    (only,) = re.findall(r"^(.+) are commands only", TEXT, re.MULTILINE)
    commands = list(typer.main.get_command(app).commands)
    alone = re.findall(r"`c2r ([\w-]+)`", only)
    assert list(TABLE) == [name for name in commands if name not in alone]
    assert set(alone) <= set(commands)


def test_a_command_and_a_function_of_one_name_are_one():
    assert set(TABLE.values()) <= set(c2r.__all__)
    for command in TABLE.keys() & set(c2r.__all__):
        assert TABLE[command] == command


@pytest.mark.parametrize("command", TABLE)
def test_a_command_calls_its_function(command):
    """The function's name stands in the command's module."""
    module = import_module(f"c2r.cli.{command}_" if command == "import" else f"c2r.cli.{command}")
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called |= {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    assert TABLE[command] in called
