"""The cases of the studies."""

from pathlib import Path

import pytest

from c2r.errors import InputError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def plans(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import study_plans

    return study_plans


def test_cases_have_the_control_first_and_each_once(plans):
    cases = plans.parse_cases(["priced=0.03,0.1@again", "top_k", "top_k@copies", "c2r=16"])
    assert [case.name for case in cases] == [
        "control",
        "priced 0.03, again",
        "priced 0.1, again",
        "control, copies",
        "c2r 16",
    ]
    assert [case.is_control for case in cases] == [True, False, False, False, False]
    assert cases[1].slug == "priced-0.03-again"


def test_a_variant_that_there_is_not_is_refused_with_those_that_there_are(plans):
    with pytest.raises(InputError, match="no variant twice; it is copies, replicas, again"):
        plans.parse_cases(["priced=0.1@twice"])
