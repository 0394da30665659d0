"""A plugin that cannot be put in ends the process instead of serving without it."""

import sys

import pytest

from c2r.errors import ModelError
from c2r.serving import plugins, vllm


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_without_the_engines_functions_the_process_ends(name):
    with pytest.raises(SystemExit, match=rf"c2r cannot reach the routers.*{name.upper()}_PLUGINS"):
        getattr(plugins, name)()


def test_a_plugin_that_cannot_be_imported_ends_the_process(monkeypatch):
    monkeypatch.delitem(sys.modules, "c2r.serving.vllm")
    monkeypatch.setitem(sys.modules, "c2r.routing", None)
    with pytest.raises(SystemExit, match=r"c2r\.routing"):
        plugins.vllm()


def test_the_versions_that_work_are_told():
    with pytest.raises(ModelError, match=r"use vLLM 0\.32"):
        vllm.register()
