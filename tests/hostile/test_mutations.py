import json
import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.mutations import fault, models, mutate, originals, place, remove_output, run

KINDS = [
    "profile.safetensors", "plan.safetensors", "trace.npz", "routed.npy", "pairs.pkl", "dump.pt",
    "trace.jsonl", "result.json", "sweep.json", "measured.json", "bench.json",
    "trainer_state.json", "cluster.yaml", "routing.npz", "recording", "routed.npz", "text.txt",
    "run.yaml", "part.json", "model/config.json", "model/model.safetensors.index.json",
    "permuted/c2r/permutation.safetensors",
]  # fmt: skip
SLOW = {"routed.npz", "text.txt", "part.json", "cluster.yaml"}


REQUESTS = [
    {"max_load": None, "seed": None}, {"max_load": []}, {"seed": "1"}, {"seed": -1},
    {"tokens_per_rank": 10**400}, {"phase": "x"}, {"phase": 3}, {"cluster": 1},
    {"cluster": "/dev/zero"}, {"objective": None}, {"num_nodes": 0}, {"model": [1]},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def commands(folder):
    return originals(folder) | models(folder)


def filled(command, path):
    return [str(path) if part == "FILE" else part for part in command]


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_file_is_read(folder, commands, kind):
    for command in commands[kind]:
        assert run(filled(command, folder / kind)) == 0
        remove_output(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(folder, commands, kind):
    content = (folder / kind).read_bytes()
    path = place(folder, kind)

    @settings(
        max_examples=6 if kind in SLOW else 20, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(seed=st.integers(0, 2**32))
    def check(seed):
        path.write_bytes(mutate(content, random.Random(seed)))
        for command in commands[kind]:
            assert fault(filled(command, path), folder) is None

    check()
    if "/" in kind:
        path.write_bytes(content)


@pytest.mark.parametrize("change", REQUESTS)
def test_a_sweep_that_asked_for_what_cannot_be_is_refused(folder, commands, change):
    document = json.loads((folder / "sweep.json").read_text())
    path = place(folder, "sweep.json")
    request = document["request"] | change
    if change == REQUESTS[0]:
        request = {name: value for name, value in request.items() if name not in change}
    path.write_text(json.dumps({**document, "request": request}))
    for command in commands["sweep.json"]:
        assert fault(filled(command, path), folder) is None


BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnop")
)
CLUSTERS = [
    BOMB, BOMB.replace("p:", "num_ranks:"), "<<: {foo: 1}", "null: 3", "0x10: 1", "[a]: 1",
    "[" * 5000, "num_ranks: " + "9" * 5000, "num_ranks: 2026-99-99", "- 1", "",
    "num_ranks: &a [*a]", "num_ranks: 2\nnum_nodes: yes", "name: [1]", "name: null",
]  # fmt: skip


@pytest.mark.parametrize("text", CLUSTERS, ids=range(len(CLUSTERS)))
def test_a_cluster_file_that_is_none_is_refused(folder, commands, text):
    path = place(folder, "cluster.yaml")
    path.write_text(text)
    command = filled(commands["cluster.yaml"][0], path)
    assert fault(command, folder) is None
    assert run(command) == 2
