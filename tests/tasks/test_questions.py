import json
from collections import Counter
from pathlib import Path

import pytest

from c2r.errors import InputError
from c2r.tasks.questions import LOCAL_TASKS, Question, read_questions

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "tasks"


def test_piqa_by_hand(tmp_path):
    items = [
        {"goal": "Open a jar.", "sol1": "Twist it.", "sol2": "Ask it."},
        {"goal": "Boil an egg.", "sol1": "In ice.", "sol2": "In water."},
    ]
    (tmp_path / "piqa-valid.jsonl").write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "piqa-valid-labels.lst").write_text("0\n1\n")
    first, second = read_questions("piqa", tmp_path)
    assert first == Question(
        prompt="Question: Open a jar.\nAnswer:", choices=("Twist it.", "Ask it."), answer=0
    )
    assert second.choices[second.answer] == "In water."
    (tmp_path / "piqa-valid-labels.lst").write_text("0\n")
    with pytest.raises(InputError, match=r"has 2 items, piqa-valid-labels.lst 1 labels"):
        read_questions("piqa", tmp_path)
    (tmp_path / "piqa-valid.jsonl").write_text('{"goal": "Open a jar."}')
    with pytest.raises(InputError, match=r"line 1 .* must have the texts goal, sol1, sol2"):
        read_questions("piqa", tmp_path)


def test_logiqa_by_hand(tmp_path):
    lines = ["", "b", "All A are B.", "What follows?", "A.Nothing.", "B. B is", "C?Five.", "D Six."]
    (tmp_path / "logiqa-test.txt").write_text("\n".join(lines) + "\n")
    assert read_questions("logiqa", tmp_path) == (
        Question(
            prompt="Passage: All A are B.\nQuestion: What follows?\nChoices:\nA. Nothing.\n"
            "B. B is\nC. Five.\nD. Six.\nAnswer:",
            choices=("Nothing.", "B is", "Five.", "Six."),
            answer=1,
        ),
    )
    (tmp_path / "logiqa-test.txt").write_text("\n".join([*lines, *lines[:5]]))
    with pytest.raises(InputError, match=r"lines 9 to 16 of logiqa-test.txt are no item"):
        read_questions("logiqa", tmp_path)


def gsm8k(tmp_path, question, answer):
    record = {"question": question, "answer": answer}
    (tmp_path / "gsm8k-test.jsonl").write_text(json.dumps(record))
    (found,) = read_questions("gsm8k-choice", tmp_path)
    assert found.choices == tuple("ABCD")
    stem, *listed, end = found.prompt.split("\n")
    assert (stem, end) == (f"Question: {question}", "Answer:")
    return dict(zip("ABCD", (line[3:] for line in listed), strict=True)), "ABCD"[found.answer]


@pytest.mark.parametrize(
    ("question", "answer", "right", "wrong"),
    [
        # From the end of the solution 9, 16, then one above or below.
        ("16 eggs, 3 and 4 gone, $2?", "16-3-4=<<16-3-4=9>>9\n9*2=18\n#### 18", "18", {"2", "9"}),
        ("Two and 1,000?", "So 1,002.\n#### 1,002", "1002", {"1000"}),
        ("Nothing told?", "\n#### 7", "7", set()),
        ("Half of 1?", "1/2=0.5\n#### 0.5", "0.5", {"2", "1"}),
        ("From 2 to -3?", "-3\n#### -3", "-3", {"2"}),
    ],
)
def test_wrong_numbers_by_hand(tmp_path, question, answer, right, wrong):
    listed, letter = gsm8k(tmp_path, question, answer)
    assert listed[letter] == right
    assert len(set(listed.values())) == 4 and wrong <= set(listed.values()) - {right}
    assert (listed, letter) == gsm8k(tmp_path, question, answer)


def test_an_answer_without_its_number(tmp_path):
    for answer in ("18", "#### none", "#### 1 2"):
        with pytest.raises(InputError, match="does not end with #### and a number"):
            gsm8k(tmp_path, "?", answer)


def test_files_that_are_not_there(tmp_path):
    for task in LOCAL_TASKS:
        with pytest.raises(InputError, match="check the path"):
            read_questions(task, tmp_path)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not beside the project")
@pytest.mark.parametrize(
    ("task", "num_items", "num_choices"),
    [("piqa", 1838, 2), ("logiqa", 651, 4), ("gsm8k-choice", 1319, 4)],
)
def test_published_files(task, num_items, num_choices):
    found = read_questions(task, PUBLISHED)
    assert len(found) == num_items
    assert {len(set(question.choices)) for question in found} == {num_choices}
    places = Counter(question.answer for question in found)
    assert all(n > 0.8 * num_items / num_choices for n in places.values()), "a place is favoured"
