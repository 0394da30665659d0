"""Recorded routing is the model's own, and a recording outlives its file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from c2r.adapters.huggingface import load_model, traces
from c2r.artifacts import read_artifact
from c2r.assets import heldout_files, tiny_folder
from c2r.errors import ArtifactError, InputError, PlanError
from c2r.measuring import measure
from c2r.plans import ClusterTopology
from c2r.prediction import rows_per_rank
from c2r.text import Text
from c2r.timing import Placing, Recording, name_policies, record_routings, spread_windows

TOPOLOGY = ClusterTopology(num_ranks=4, num_nodes=2)
POLICIES = name_policies(["budgeted=0.3", "c2r=4"])


def batches(first, num_rows=4, seq_len=96):
    content = heldout_files()[0].read_bytes()[first : first + num_rows * seq_len]
    ids = torch.tensor(list(content)).view(num_rows, seq_len)
    mask = torch.ones_like(ids)
    mask[-1, -10:] = 0
    return [{"input_ids": part, "attention_mask": mask[i : i + 2]} for i, part in parts(ids)]


def parts(ids):
    return [(i, ids[i : i + 2]) for i in range(0, len(ids), 2)]


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_folder(), dtype=torch.float32)


@pytest.fixture(scope="module")
def recording(model):
    placing = Placing(topology=TOPOLOGY)
    return record_routings(model, batches(0), lambda: batches(5000), POLICIES, placing)


def test_policies_are_named_by_their_strengths():
    assert name_policies(["budgeted=0.05,0.1", "c2r=8"]) == {
        "budgeted 0.05": ("budgeted", 0.05),
        "budgeted 0.1": ("budgeted", 0.1),
        "c2r 8": ("c2r", 8.0),
    }
    with pytest.raises(InputError, match=r"priced has no strength.* budgeted=0\.1"):
        name_policies(["budgeted=0.1", "priced"])
    with pytest.raises(PlanError, match="'oracle' is unknown"):
        name_policies(["oracle=1"])


def test_the_free_routing_is_the_models_own(model, recording):
    found = [trace.layers for trace in traces(model, batches(5000))]
    routing = recording.routings["top_k"]
    assert routing.expert_ids.shape == (4, 4 * 96 - 10, 4)
    for index in range(4):
        ids = torch.cat([layers[index].expert_ids for layers in found])
        weights = torch.cat([layers[index].weights for layers in found])
        assert np.array_equal(routing.expert_ids[index], ids)
        assert np.allclose(routing.weights[index], weights)
    assert routing.loss == pytest.approx(measure(model, batches(5000)).loss, rel=1e-5)


def test_policies_constrain_and_leave_the_model_as_it_was(model, recording):
    rows = {
        name: sum(
            rows_per_rank(ids, placement, 4).sum()
            for ids, placement in zip(routing.expert_ids, recording.placement, strict=True)
        )
        for name, routing in recording.routings.items()
    }
    assert list(rows) == ["top_k", "budgeted 0.3", "c2r 4"]
    assert rows["budgeted 0.3"] < rows["top_k"]
    assert not np.array_equal(
        recording.routings["c2r 4"].expert_ids, recording.routings["top_k"].expert_ids
    )
    again = next(iter(traces(model, batches(5000)))).layers[3].expert_ids
    assert np.array_equal(again, recording.routings["top_k"].expert_ids[3][: len(again)])


def test_a_recording_outlives_its_file(recording, tmp_path):
    recording.save(tmp_path / "recording.safetensors")
    loaded = Recording.load(tmp_path / "recording.safetensors")
    assert (loaded.num_experts, loaded.topology) == (32, TOPOLOGY)
    assert np.array_equal(loaded.placement, recording.placement)
    assert loaded.max_load == recording.max_load
    for name, routing in recording.routings.items():
        assert loaded.routings[name].loss == routing.loss
        assert np.array_equal(loaded.routings[name].expert_ids, routing.expert_ids)
        assert np.array_equal(loaded.routings[name].weights, routing.weights)
    assert np.array_equal(Recording.decode(recording.encode()).placement, recording.placement)


def test_replicas_outlive_the_file(recording, tmp_path):
    """A file without them, as older ones are, holds none."""
    path = tmp_path / "recording.safetensors"
    recording.save(path)
    assert "replicas" not in read_artifact(path, "recording").arrays
    assert Recording.load(path).replicas.shape == (4, 4, 0)
    held = replace(recording, replicas=np.arange(4 * 4 * 2).reshape(4, 4, 2))
    held.save(path)
    assert read_artifact(path, "recording").arrays["replicas"].dtype == np.int16
    loaded = Recording.load(path)
    assert np.array_equal(loaded.replicas, held.replicas) and loaded.num_replicas == 2
    assert np.array_equal(loaded.of_layers(2).replicas, held.replicas[[0, 2]])


def test_windows_come_from_all_parts_of_the_texts():
    def tokenizer(piece, **_):
        return {"input_ids": [ord(letter) for letter in piece]}

    texts = [Text(name=n, content="".join(letter * 8192 for letter in n)) for n in ("abc", "xyz")]
    found = spread_windows(texts, tokenizer, 6 * 512)
    assert [window["input_ids"].shape for window in found] == [(1, 512)] * 6
    seen = {chr(token) for window in found for token in window["input_ids"].unique()}
    assert seen == set("abcxyz")
    assert len(spread_windows(texts, tokenizer, 10**6)) == 6 * 16


def test_layers_are_kept_evenly(recording):
    two = recording.of_layers(2)
    assert two.num_layers == 2 and np.array_equal(two.placement, recording.placement[[0, 2]])
    for name, routing in two.routings.items():
        assert np.array_equal(routing.expert_ids, recording.routings[name].expert_ids[[0, 2]])
    with pytest.raises(InputError, match="5 layers or tokens of 4"):
        recording.of_layers(5)


def test_tokens_to_keep_come_from_all_of_the_text(model, recording):
    placing = Placing(topology=TOPOLOGY)
    few = record_routings(model, batches(0), lambda: batches(5000), {}, placing, num_tokens=64)
    kept, every = (each.routings["top_k"] for each in (few, recording))
    assert kept.loss == every.loss
    assert np.array_equal(kept.expert_ids, every.expert_ids[:, np.arange(64) * 374 // 64])


def test_another_file_is_refused(recording, tmp_path):
    path = tmp_path / "recording.safetensors"
    path.write_bytes(recording.encode()[:-100])
    with pytest.raises(ArtifactError):
        Recording.load(path)


def test_no_text_to_record(model):
    with pytest.raises(InputError, match="no token to record"):
        record_routings(model, batches(0), list, {}, Placing(topology=TOPOLOGY))
