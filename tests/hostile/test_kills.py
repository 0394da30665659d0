"""A part of `scripts/campaign --kills` and `--ranks`: one of each kind."""

import random
import shutil
import signal

import pytest

from tests.hostile import kills, lost_ranks


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "inputs"
    kills.inputs(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "number"),
    [("profile", signal.SIGKILL), ("finetune router", signal.SIGTERM), ("import", signal.SIGKILL)],
)
def test_killed_and_run_again_nothing_is_lost_or_left(inputs, tmp_path, name, number):
    work = tmp_path / "work"
    seconds, whole = kills.undisturbed(name, inputs, work)
    shutil.rmtree(work)
    moment = random.Random(name).uniform(0.2, 0.9) * seconds
    assert kills.trial(name, inputs, work, number, moment, whole) is None


@pytest.mark.distributed
@pytest.mark.parametrize("number", lost_ranks.SIGNALS)
def test_the_others_name_a_lost_rank_in_time(inputs, tmp_path, number):
    work = shutil.copytree(inputs, tmp_path / "work")
    assert lost_ranks.trial("profile", work, 2, number, 1.2) == "named"
