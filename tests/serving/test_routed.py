"""Routing that an engine's requests returned, replayed."""

import json

import numpy as np
import pytest
import torch

import c2r
from c2r.adapters.huggingface import load_model
from c2r.adapters.layers import ModelLayers
from c2r.assets import tiny_folder
from c2r.cli import run_command
from c2r.errors import InputError
from c2r.serving.routed import read_routed

LAYERS = ModelLayers(num_experts=4, routers={1: "layers.1.mlp", 2: "layers.2.mlp"}, num_layers=3)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", [np.int16, np.uint8])  # vLLM's for many experts and for few
def test_dense_layers_are_left_out_and_the_last_token_was_not_routed(tmp_path, dtype):
    experts = np.arange(4 * 3 * 2, dtype=dtype).reshape(4, 3, 2)
    first = {"0.token_ids": np.arange(5), "0.routed_experts": experts}
    second = {"1.token_ids": np.arange(2), "1.routed_experts": experts[:2]}
    sequences, answer = read_routed(save(tmp_path / "r.npz", **first, **second), LAYERS)
    assert [sequence.tolist() for sequence in sequences] == [[0, 1, 2, 3], [0, 1]]
    assert sorted(answer.expert_ids) == [1, 2]
    assert (answer.expert_ids[2] == np.concatenate([experts[:, 2], experts[:2, 2]])).all()


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"other": np.arange(3)}, "holds no request"),
        ({"0.token_ids": np.arange(3)}, "0.routed_experts"),
        ({"0.token_ids": np.arange(3), "0.routed_experts": np.zeros((2, 2))}, "not .tokens. and"),
        (
            {"0.token_ids": np.arange(9), "0.routed_experts": np.zeros((2, 2, 2), dtype=int)},
            "not .tokens. and",
        ),
        (
            {"0.token_ids": np.arange(3), "0.routed_experts": np.zeros((2, 5, 2), dtype=int)},
            "counts 5 layers, the model has 3, 2 of them",
        ),
        (
            {"0.token_ids": np.arange(1), "0.routed_experts": np.zeros((0, 2, 2), dtype=int)},
            "no array 0.routed_experts",
        ),
    ],
)
def test_what_is_not_of_the_model_is_refused(tmp_path, arrays, told):
    with pytest.raises(InputError, match=told):
        read_routed(save(tmp_path / "r.npz", **arrays), LAYERS)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "r.npz").write_text("no archive")
    with pytest.raises(InputError, match="cannot read"):
        read_routed(tmp_path / "r.npz", LAYERS)


def test_the_command_tells_where_the_model_would_have_chosen_otherwise(tmp_path, capsys):
    model = load_model(tiny_folder(), dtype="float32")
    ids = torch.arange(3, 35)[None]
    with torch.no_grad(), c2r.capture(model) as recorder:
        model(input_ids=ids)
        layers = recorder.take().layers
    experts = np.stack([layer.expert_ids.numpy() for layer in layers], axis=1)
    experts[:8, -1, 1] = [next(e for e in range(64) if e not in row) for row in experts[:8, -1]]
    arrays = {"0.token_ids": ids[0].numpy(), "0.routed_experts": experts}
    path = str(save(tmp_path / "r.npz", **arrays))
    assert run_command(["serve-check", "tiny", "--routed", path, "--json"]) == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [layer["other_sets"] for layer in document["layers"]] == [0.0] * 3 + [0.25]
    assert document["log_prob_difference"] is None
    assert run_command(["serve-check", "tiny", "--routed", path, "--other-sets", "0.3"]) == 0
    save(tmp_path / "r.npz", **{**arrays, "0.token_ids": ids[0].numpy() - 9})
    assert run_command(["serve-check", "tiny", "--routed", path]) == 2
    assert "token id -6 is beyond the embedding" in capsys.readouterr().err
    assert run_command(["serve-check", "tiny"]) == 2
    assert "--python" in capsys.readouterr().err
