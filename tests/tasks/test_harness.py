import copy
import json
from dataclasses import replace

import pytest
import torch

import c2r
from c2r.adapters.huggingface import applied_plan, load_model, load_tokenizer
from c2r.assets import heldout_files, tiny_folder
from c2r.errors import InputError, PlanMismatchError
from c2r.measuring import RoutingTally, free_plan, unconstrained
from c2r.tasks import TaskRequest, evaluate, forget_answers, harness, load_tasks
from c2r.tasks.questions import read_questions
from c2r.text import read_texts, token_batches

ITEMS = [
    {"goal": "How to boil an egg?", "sol1": "Put it in hot water.", "sol2": "Put it in a bag."},
    {"goal": "Say yes.", "sol1": "No, never.", "sol2": "Yes."},
    {"goal": "Count to three.", "sol1": "One, two, three.", "sol2": "Three, one, four."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny_folder())


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_folder(), torch.float32)


@pytest.fixture(scope="module")
def plan(model, tokenizer):
    batches = token_batches(
        read_texts(heldout_files()), tokenizer, seq_len=256, batch_size=4, num_tokens=4096
    )
    profile = c2r.profile(model, batches)
    return c2r.make_plan(profile, num_ranks=4, policy="budgeted", strength=0.3)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "piqa-valid.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    (tmp_path / "piqa-valid-labels.lst").write_text("0\n1\n0\n")
    return tmp_path


def request(folder, **options):
    return TaskRequest(tasks=("piqa",), folder=folder, **options)


def test_answers_by_hand(model, tokenizer, plan, folder):
    """Log-likelihoods of each choice, one request at a time, and the copies of their tokens."""
    found = evaluate(model, tokenizer, load_tasks(request(folder, limit=2)), plan)
    (task,) = found.tasks
    expected, tally = [], None
    c2r.apply(model, plan)
    try:
        with torch.no_grad(), c2r.capture(model) as recorder:
            for question in read_questions("piqa", folder)[:2]:
                scores = []
                for choice in question.choices:
                    prompt = list(question.prompt.encode())
                    answer = list(f" {choice}".encode())
                    logits = model(torch.tensor([[*prompt, *answer][:-1]])).logits[0]
                    chances = logits.log_softmax(-1)[len(prompt) - 1 :]
                    scores.append(chances.gather(1, torch.tensor(answer)[:, None]).sum().item())
                    counted = RoutingTally.count(recorder.take(), plan)
                    tally = counted if tally is None else (tally.add(counted), tally)[1]
                expected.append((scores, scores[question.answer] == max(scores)))
    finally:
        c2r.remove(model)
    for (scores, is_right), ours, correct in zip(
        expected, task.loglikelihoods, task.correct, strict=True
    ):
        assert ours == pytest.approx(scores, abs=1e-3) and correct == is_right
    assert found.routing["num_tokens"] == tally.num_tokens[0]
    assert found.routing["copies"] == pytest.approx(tally.means()["copies"], rel=1e-3)
    assert found.routing["copies"] < found.routing["copies_in_order"]
    plain = evaluate(model, tokenizer, load_tasks(request(folder, limit=2)), unconstrained(plan))
    assert plain.routing["copies"] > found.routing["copies"]
    assert plain.tasks[0].loglikelihoods != task.loglikelihoods
    assert plain.tasks[0].ids == task.ids


def test_the_model_is_left_as_it_was(model, tokenizer, plan, folder):
    tasks = load_tasks(request(folder, limit=1))
    c2r.apply(model, plan)
    model.train()
    try:
        evaluate(model, tokenizer, tasks, unconstrained(plan))
        assert applied_plan(model) is plan and model.training
    finally:
        model.eval()
        c2r.remove(model)
    assert tokenizer.pad_token is None


def test_shots_are_other_items(model, tokenizer, folder):
    tasks = load_tasks(request(folder, num_shots=2))
    first = evaluate(model, tokenizer, tasks, free_plan(model))
    (member,) = tasks.members["piqa"]
    for instance in member.instances:
        prompt = instance.args[0]
        assert all(prompt.count(item["goal"]) == 1 for item in ITEMS)
        assert prompt.endswith(f"Question: {instance.doc['prompt'][10:]}")
    again = evaluate(model, tokenizer, tasks, free_plan(model))
    assert first == again and first.tasks[0].num_shots == 2
    none = evaluate(model, tokenizer, load_tasks(request(folder)), free_plan(model))
    assert not set(none.tasks[0].ids) & set(first.tasks[0].ids)


def test_shots_do_not_depend_on_what_was_asked_before(model, tokenizer, folder, monkeypatch):
    """As where ranks share the items, or an interrupted evaluation goes on."""
    tasks = load_tasks(request(folder, num_shots=1, batch_size=1))
    whole = evaluate(model, tokenizer, tasks, free_plan(model))
    monkeypatch.setattr(harness, "_BATCHES_AT_ONCE", 1)
    monkeypatch.setattr(harness, "_fitting", lambda *_: [0, 2])
    some = evaluate(model, tokenizer, tasks, free_plan(model))
    assert some.tasks[0].ids == (whole.tasks[0].ids[0], whole.tasks[0].ids[2])


def test_interrupted_it_goes_on(model, tokenizer, plan, folder, monkeypatch):
    tasks, out = load_tasks(request(folder, batch_size=1)), folder / "piqa.json"
    monkeypatch.setattr(harness, "_BATCHES_AT_ONCE", 1)
    asked, answer = [], harness._answer

    def interrupted(items, *others):
        if len(asked) == 2:
            asked.clear()
            raise KeyboardInterrupt
        asked.append(items[0][1])
        return answer(items, *others)

    monkeypatch.setattr(harness, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, tasks, plan, out=out)
    found = evaluate(model, tokenizer, tasks, plan, out=out)
    assert asked == [2]
    monkeypatch.undo()
    whole = evaluate(model, tokenizer, tasks, plan)
    assert (found.tasks[0].ids, found.tasks[0].correct) == (
        whole.tasks[0].ids,
        whole.tasks[0].correct,
    )
    assert found.routing == pytest.approx(whole.routing)
    forget_answers(out)
    assert not list(folder.glob("piqa.json*"))


def test_what_exceeds_the_window_is_counted(model, tokenizer, folder):
    items = [{**ITEMS[0], "sol2": "bag " * 256}, {**ITEMS[1], "goal": "Say it. " * 200}, ITEMS[2]]
    (folder / "piqa-valid.jsonl").write_text("\n".join(map(json.dumps, items)))
    whole = evaluate(model, tokenizer, load_tasks(request(folder)), free_plan(model))
    (task,) = whole.tasks
    assert (len(task.ids), task.num_left_out, task.num_truncated) == (2, 1, 2)
    last = evaluate(model, tokenizer, load_tasks(request(folder, limit=2)), free_plan(model))
    assert last.tasks[0].ids == task.ids[:1] and last.tasks[0].num_left_out == 1
    with pytest.raises(InputError, match="no choice of task piqa fits the model's window of 1024"):
        evaluate(model, tokenizer, load_tasks(request(folder, limit=1)), free_plan(model))


MINI = """\
task: mini
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/mini.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{q}}}}"
doc_to_target: {target}
{more}
"""


def write_task(folder, name, output_type, target, more):
    lines = [{"q": "def f(x): return", "options": ["x", "lambda"], "right": 0, "text": "x"}]
    (folder / "mini.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = folder / name
    text = MINI.format(folder=folder, output_type=output_type, target=target, more=more)
    path.write_text(text)
    return path


def test_task_files(model, tokenizer, tmp_path):
    generating = load_tokenizer(tiny_folder())
    generating.add_special_tokens({"eos_token": "</s>"})  # ends what is generated
    choice = write_task(tmp_path, "a.yaml", "multiple_choice", "right", "doc_to_choice: options")
    greedy = (
        "generation_kwargs: {until: [')'], max_gen_toks: 3, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]"
    )
    generated = write_task(tmp_path, "b.yaml", "generate_until", "text", greedy)
    generated.write_text(generated.read_text().replace("task: mini", "task: other"))
    tasks = load_tasks(TaskRequest(task_files=(choice, generated)))
    found = evaluate(model, generating, tasks, free_plan(model))
    first, second = found.tasks
    assert (first.name, first.metric, len(first.loglikelihoods[0])) == ("a", "acc", 2)
    assert (second.name, second.metric, second.loglikelihoods) == ("b", "exact_match", ((),))
    rolling = "metric_list: [{metric: word_perplexity}]"
    path = write_task(tmp_path, "c.yaml", "loglikelihood_rolling", "text", rolling)
    tasks = load_tasks(TaskRequest(task_files=(path,)))
    with pytest.raises(InputError, match="task c does not tell which items are right"):
        evaluate(model, tokenizer, tasks, free_plan(model))
    with pytest.raises(InputError, match="two tasks are named a"):
        load_tasks(TaskRequest(task_files=(choice, choice)))
    choice.write_text(choice.read_text().replace("doc_to_text", "doc_to_txt"))
    with pytest.raises(InputError, match=r"cannot be loaded .*doc_to_txt"):
        load_tasks(TaskRequest(task_files=(choice,)))


def test_requests_that_cannot_be_met(model, tokenizer, plan, folder, monkeypatch):
    with pytest.raises(InputError, match="no task is named"):
        load_tasks(TaskRequest())
    with pytest.raises(InputError, match="limit is 0; it must be at least 1"):
        load_tasks(request(folder, limit=0))
    with pytest.raises(InputError, match="piqa has 3 items, too few for 3 shots"):
        load_tasks(request(folder, num_shots=3))
    with pytest.raises(InputError, match="there is no task file"):
        load_tasks(TaskRequest(task_files=(folder / "none.yaml",)))
    other = replace(plan, layers=plan.layers[1:])
    with pytest.raises(PlanMismatchError):
        evaluate(model, tokenizer, load_tasks(request(folder)), other)
    monkeypatch.setattr("c2r.tasks.load.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'c2r-moe\[eval\]'"):
        load_tasks(request(folder))


def test_tasks_of_the_hub_without_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="arc_easy needs the Hugging Face hub, which cannot be"):
        load_tasks(TaskRequest(tasks=("paper",)))
    with pytest.raises(InputError, match=r"there is no task pica; near are .*piqa"):
        load_tasks(TaskRequest(tasks=("pica",)))


def test_a_tokenizer_larger_than_the_model_is_told_by_the_id(model, tokenizer, plan, folder):
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens([*(f"no-word-{number}" for number in range(500)), "egg"])
    rows = model.get_input_embeddings().num_embeddings
    with pytest.raises(InputError, match=rf"token id {len(larger) - 1} is beyond .* {rows} rows"):
        evaluate(model, larger, load_tasks(request(folder)), plan)
    assert applied_plan(model) is None
    assert not model._forward_hooks and not model._forward_pre_hooks
