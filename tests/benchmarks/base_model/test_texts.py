import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
from benchmarks.base_model.cloze import passages, write_task
from benchmarks.base_model.texts import Mixture, plain_dictionary, plain_text, wiki_parts, windows
from c2r.tasks import TaskRequest, load_tasks


def test_articles_are_cut_into_parts_that_share_nothing():
    articles = [f" = Article {n} = \n \n text {n} \n = = Part = = \n more \n" for n in range(20)]
    found = wiki_parts("".join(articles), {"a": 0.5, "b": 0.25, "c": 0.25})
    assert "".join(found.values()) == "".join(articles)
    assert {name: part.count(" = Article") for name, part in found.items()} == {
        "a": 10,
        "b": 5,
        "c": 5,
    }


def test_windows_are_whole():
    assert windows(np.arange(7, dtype=np.int32), 3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_mixture_keeps_its_shares_and_every_pass_takes_every_row():
    sources = {"a": torch.arange(6)[:, None], "b": 10 + torch.arange(2)[:, None]}
    mixture = Mixture({**sources, "none": torch.empty(0, 1)}, {"a": 3, "b": 1, "none": 9}, seed=0)
    steps = [mixture.batch(step, 4).flatten().tolist() for step in range(4)]
    rows = [row for step in steps for row in step]
    assert [sum(row >= 10 for row in step) for step in steps] == [1, 1, 1, 1]
    first, again = [row for row in rows if row < 10][:6], [row for row in rows if row < 10][6:]
    assert sorted(first) == list(range(6)) and set(again) <= set(range(6))
    assert [row for row in rows if row >= 10][:2] in ([10, 11], [11, 10])
    other = Mixture(sources, {"a": 3, "b": 1}, seed=1)
    assert [other.batch(step, 4).flatten().tolist() for step in range(4)] != steps


def test_documents_become_plain():
    page = "<html><h1>One\n two</h1><p>It&rsquo;s <b>so</b>.</p><script>no</script></html>"
    assert plain_text(page) == "One two\nIt\u2019s so."
    assert plain_dictionary("{A}\n\n   see\n   {B}\n") == "A\nsee B"


def test_passages_by_hand():
    before = [f"w{n}" for n in range(30)]
    text = f" = Title = \n {' '.join(before)} lobster , too short . {' '.join(before)} of . \n"
    assert next(passages(text)) == (" ".join(before), "lobster")
    assert [word for _, word in passages(text)] == ["lobster", "short"]
    assert list(passages(text.replace("w3 ", "<unk> "))) == []
    assert list(passages("A short one .")) == []


def test_the_word_that_is_asked_for_begins_with_a_space(tmp_path):
    """Without it, models are asked for the rest of the passage's own last word."""
    pytest.importorskip("lm_eval")
    passage = " ".join(f"w{n}" for n in range(20))
    definition, num_items = write_task(f"{passage} lobster .", tmp_path)
    assert num_items == 1
    ((task,),) = load_tasks(TaskRequest(task_files=(definition,))).members.values()
    (doc,) = task.eval_docs
    asked = task.construct_requests(doc=doc, ctx=task.doc_to_text(doc), metadata=(None, 0, 1))
    assert asked.args == (passage, " lobster")
