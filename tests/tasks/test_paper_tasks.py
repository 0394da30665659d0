"""The ten tasks of the paper from end to end, on stand-ins of their data sets in a hub cache."""

import json
import logging
from logging.handlers import MemoryHandler

import pytest
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

import c2r
from benchmarks.task_stand_ins import DATA_SETS, KINDS, draw_items, make_stand_ins
from c2r.adapters.huggingface import load_tokenizer
from c2r.assets import heldout_files, tiny_folder
from c2r.tasks import PAPER_TASKS, TaskRequest, load_tasks
from c2r.text import read_texts, token_batches
from tests.cli.test_cli import call_json

NUM_SUBJECTS = 57


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_stand_ins(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def offline(cache, monkeypatch):
    """What HF_HOME and HF_HUB_OFFLINE set when the libraries are imported."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of Qwen1.5-MoE's routing, E = 60 and k = 4, and a plan with the paper's T = 30."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(str(tiny_folder()))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    experts = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 4}
    model = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=2,
            num_key_value_heads=2,
            shared_expert_intermediate_size=8,
            max_position_embeddings=8192,
            **sizes,
            **experts,
        )
    ).eval()
    batches = token_batches(read_texts(heldout_files()), tokenizer, num_tokens=2048, seq_len=256)
    plan = c2r.make_plan(c2r.profile(model, batches), num_ranks=4, top_t=30)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    plan.save(folder / "plan.safetensors")
    return folder / "model", folder / "plan.safetensors"


def test_the_whole_preset_runs(capsys, offline, folders):
    model, plan = folders
    limit = ["--tasks", "paper", "--limit", "1", "--batch-size", "4"]
    found = call_json(capsys, "evaluate", model, "--plan", plan, *limit)
    tasks = {task["name"]: task for task in found["tasks"]}
    assert {name: task["num_shots"] for name, task in tasks.items()} == PAPER_TASKS
    for name, task in tasks.items():
        assert len(task["ids"]) == (NUM_SUBJECTS if name == "mmlu" else 1), name
        assert (task["num_left_out"], task["num_truncated"]) == (0, 0), name
        assert task["metric"] == "acc"
    assert found["policies"] == ["c2r"] and found["reference"]["policies"] == ["top_k"]
    assert list(found["comparison"]) == [*PAPER_TASKS, "all"]
    assert found["comparison"]["all"]["num_items"] == NUM_SUBJECTS + 9


def test_prompts_hold_the_shots(offline):
    """And nothing is said of the 66 data sets that come from the cache."""
    said = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL)
    logging.getLogger("datasets").addHandler(said)
    try:
        loaded = load_tasks(TaskRequest(tasks=("paper",), limit=1))
    finally:
        logging.getLogger("datasets").removeHandler(said)
    assert [record.getMessage() for record in said.buffer] == []
    for name, members in loaded.members.items():
        task = members[0]
        task.set_fewshot_seed(seed=0)
        task.build_all_requests(limit=1)
        prompt = task.instances[0].args[0]
        word = {"hellaswag": "Naming things: ", "openbookqa": "A kind of", "winogrande": "only the"}
        assert prompt.count(word.get(name, "Answer:")) == PAPER_TASKS[name] + 1, prompt


def test_stand_ins_are_laid_out_as_the_library_leaves_them(cache):
    for data_set in DATA_SETS:
        for config in data_set.configs:
            folder = cache / data_set.name.replace("/", "___") / config / "0.0.0"
            (info,) = folder.glob("*/dataset_info.json")
            told = json.loads(info.read_text())
            assert told["config_name"] == config
            assert set(told["splits"]) == {data_set.shots_split, *data_set.asked_splits}
            name = data_set.name.partition("/")[2]
            assert all(
                (info.parent / f"{name}-{split}.arrow").is_file() for split in told["splits"]
            )


def test_items_have_one_right_answer_and_are_the_same_again():
    items = list(draw_items(200, 4, "seed"))
    assert items == list(draw_items(200, 4, "seed")) != list(draw_items(200, 4, "other"))
    for item in items:
        right = [index for index, thing in enumerate(item.things) if thing in KINDS[item.kind]]
        assert right == [item.right]
    assert {item.right for item in items} == {0, 1, 2, 3}
