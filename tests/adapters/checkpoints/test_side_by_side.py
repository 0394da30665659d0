"""Weights written to their places in files."""

import os

import torch
from safetensors.torch import load_file

from c2r.adapters.checkpoints.side_by_side import SideBySide


def test_writing_goes_on_where_the_system_wrote_less_than_asked(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, start: write(file, data[:7], start))
    tensors = {"b": torch.arange(10.0), "a": torch.arange(3, dtype=torch.bfloat16)}
    files = SideBySide(tmp_path, tensors, "1GB")
    files.create()
    files.write("a", tensors["a"])
    files.write("b", tensors["b"][6:], first_value=6)
    files.write("b", tensors["b"][:6])
    files.flush()
    files.close()
    found = load_file(tmp_path / "model.safetensors")
    assert list(found) == ["b", "a"] and all(torch.equal(found[k], tensors[k]) for k in found)


def test_views_of_a_stack_fill_files_by_their_own_size(tmp_path):
    stack = torch.empty(8, 100, device="meta")  # 400 bytes each
    experts = {f"experts.{index}.weight": expert for index, expert in enumerate(stack)}
    SideBySide(tmp_path, experts, 1000).create()
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
