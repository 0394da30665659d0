"""Every JSON file that a report reads, damaged in every place: one line, or a page."""

import copy
import json

import numpy as np
import pytest

from c2r.errors import C2RError
from c2r.planning import make_plan
from c2r.reporting import build_report, read_inputs
from tests.reporting.profiles import benchmark_document, clustered_profile, sweep_document
from tests.reporting.test_verdict import task_document
from tests.results.measurements import measurement_document

DAMAGE = (None, "x", {}, -1, 1e300, True, [[]])


def documents(plan):
    """One file of each kind, with figures of ranks."""
    shares = {"rank_rows": [[1.0] * 4], "rank_visits": [[0.5] * 4], "node_visits": [[1.0]]}
    sweep = sweep_document(**shares)
    sweep["points"] = [point | shares for point in sweep["points"][:1]]
    sweep["request"] |= {"model": "m", "cluster": "h100-8", "tokens_per_rank": 64, "sizes": SIZES}
    sweep["spread"] = [{"policy": "c2r", "strength": 8.0}]
    state = {"log_history": [{"step": 1, "loss": 2.0, "copies_per_token": 1.5}], "epoch": 1}
    benchmark = benchmark_document()
    benchmark["cases"] = benchmark["cases"][:1]
    tasks = task_document(plan, -0.1, 0.1, False)
    alone = {"name": "piqa", "correct": [True], "accuracy": 1.0}
    return {
        "sweep": sweep,
        "measurement": measurement_document(plan_fingerprint=plan.fingerprint, **shares),
        "tasks": tasks,
        "tasks, not compared": {"kind": tasks["kind"], "tasks": [alone], "model": "m"},
        "benchmark": benchmark,
        "training": state,
    }


SIZES = {
    "hidden_size": 8,
    "expert_size": 4,
    "shared_expert_size": 0,
    "num_layers": 1,
    "num_moe_layers": 1,
    "dense_parameters": 100,
    "num_matrices": 3,
}


def places(value, path=()):
    """The path of every entry of a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items if isinstance(value, dict | list) else ():
        yield from places(item, (*path, key)) if isinstance(item, dict | list) else [(*path, key)]


def put(document, path, value):
    """A copy with another entry at the path; left out where the value is `...`."""
    changed = copy.deepcopy(document)
    *outer, last = path
    place = changed
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A profile of one layer and a plan for it."""
    folder = tmp_path_factory.mktemp("damaged")
    profile = clustered_profile(num_layers=1)
    plan = make_plan(profile, num_ranks=4)
    profile.save(folder / "profile")
    plan.save(folder / "plan")
    return folder, plan


@pytest.mark.parametrize(
    "kind", ["sweep", "measurement", "tasks", "tasks, not compared", "benchmark", "training"]
)
def test_damaged_json_is_one_line_or_a_page(files, kind):
    folder, plan = files
    document = documents(plan)[kind]
    whole = [folder / "profile", folder / "plan", folder / "json"]
    (folder / "json").write_text(json.dumps(document))
    assert build_report(read_inputs(whole)).verdict.bars
    refused = 0
    for path in places(document):
        for value in (*DAMAGE, ...):
            (folder / "json").write_text(json.dumps(put(document, path, value)))
            try:
                report = build_report(read_inputs(whole))
            except C2RError as error:
                refused += 1
                assert "\n" not in str(error), (path, value)
            else:
                assert all(np.isfinite(bar.total) for bar in report.verdict.bars), (path, value)
    assert refused
