import json

import pytest

from c2r.errors import ArtifactError, InputError
from c2r.tasks import TaskEvaluation, TaskResult, compare_evaluations


def task(correct, name="piqa", ids=None):
    return TaskResult(
        name=name,
        metric="acc",
        num_shots=0,
        version="1",
        num_left_out=0,
        num_truncated=0,
        ids=tuple(ids or map(str, range(len(correct)))),
        correct=tuple(map(bool, correct)),
        loglikelihoods=tuple((-1.5, -2.25) for _ in correct),
    )


def evaluation(*tasks):
    routing = {"copies": 1.5, "copies_in_order": 2.0, "rank_load_max_over_mean": 1.25}
    return TaskEvaluation(tasks=tasks, routing=routing, provenance={"model": "tiny"})


def test_files_hold_every_item(tmp_path):
    path, made = tmp_path / "a.json", evaluation(task([1, 0, 1]), task([0, 1], "sciq"))
    document = made.to_json()
    assert [entry["accuracy"] for entry in document["tasks"]] == [2 / 3, 1 / 2]
    path.write_text(json.dumps(document | {"reference": {}, "comparison": {}}))
    assert TaskEvaluation.load(path) == made


def test_items_are_paired_by_what_they_are():
    ours = evaluation(task([1, 1, 0, 0], ids="abcd"), task([1, 0], "sciq"))
    theirs = evaluation(task([1, 0], "sciq"), task([0, 1, 1, 1], ids="dbca"))
    found = compare_evaluations(ours, theirs)
    assert list(found) == ["piqa", "sciq", "all"]
    piqa = found["piqa"]  # a, b, c, d: ours 1 1 0 0, theirs 1 1 1 0
    assert (piqa.num_gained, piqa.num_lost) == (0, 1)
    assert found["all"].difference == pytest.approx((-1 / 4 + 0) / 2)
    assert found["all"].num_items == 6
    assert list(compare_evaluations(evaluation(task([1])), evaluation(task([0])))) == ["piqa"]


def test_results_that_cannot_be_compared():
    ours = evaluation(task([1, 1, 0], ids="abc"))
    words = "piqa: 1 of 3 items are in the first result only, 2 of 4 in the second only"
    with pytest.raises(InputError, match=words):
        compare_evaluations(ours, evaluation(task([1, 1, 0, 1], ids="bcde")))
    with pytest.raises(InputError, match="has the tasks piqa, the other sciq"):
        compare_evaluations(ours, evaluation(task([1], "sciq")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read .*check the path"),
        ("{", "is no result of `c2r evaluate`"),
        ("[]", "is no result of `c2r evaluate`"),
        ('{"kind": "plan"}', "is no result of `c2r evaluate`"),
        ('{"kind": "task evaluation", "tasks": []}', "lacks or damages a field .*routing"),
        ('{"kind": "task evaluation", "routing": {}, "tasks": [{"ids": []}]}', "lacks or damages"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, words):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtifactError, match=words):
        TaskEvaluation.load(path)
