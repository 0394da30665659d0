import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.mutations import fault, models, mutate, originals, place, remove_output, run

KINDS = [
    "profile.safetensors", "plan.safetensors", "trace.npz", "routed.npy", "pairs.pkl", "dump.pt",
    "trace.jsonl", "result.json", "sweep.json", "measured.json", "bench.json",
    "trainer_state.json", "cluster.yaml", "routing.npz", "recording", "routed.npz", "text.txt",
    "part.json", "model/config.json", "model/model.safetensors.index.json",
    "permuted/c2r/permutation.safetensors",
]  # fmt: skip
SLOW = {"routed.npz", "text.txt", "part.json", "cluster.yaml"}


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
