"""The README's road, walked from the command line on seven families, its figures counted anew."""

import json
import string
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import c2r
from c2r.cli import run_command
from c2r.plans import Plan
from c2r.profiling import CollaborationProfile
from tests.adapters.huggingface.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}
ROAD = (
    "mixtral",
    "qwen3_moe",
    "olmoe",
    "deepseek_v3 (groups)",
    "gpt_oss",
    "glm4_moe",
    "granitemoe",
)
SEQ_LEN = 32
TOKENS = 20 * SEQ_LEN
TEXT = ("the experts of a layer are placed where their tokens are, " * 30)[:1500]
LETTERS = (" " + string.ascii_letters + string.digits + string.punctuation)[:90]


def make_tokenizer():
    """Of letters, with a token that begins each text, as many models' tokenizers have."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {letter: 4 + index for index, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def windows(tokenizer):
    """The rows of token ids that the commands run on, cut here by hand."""
    ids = tokenizer(TEXT)["input_ids"]
    assert ids[0] == 1 and len(ids) == len(TEXT) + 1
    room = SEQ_LEN - 1
    return torch.tensor([[1, *ids[1:][i * room : (i + 1) * room]] for i in range(20)])


def count(model, rows, num_experts):
    """Loads `[layers, E]` of the ids that the experts' modules are handed, and the mean loss."""
    loads, handles = [], []

    def handed(module, args, kwargs):
        (ids,) = (
            value for value in (*args, *kwargs.values())
            if isinstance(value, torch.Tensor) and value.dtype == torch.int64
        )  # fmt: skip
        loads.append(np.bincount(ids.flatten().numpy(), minlength=num_experts))

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            handles.append(module.register_forward_pre_hook(handed, with_kwargs=True))
    with torch.no_grad():
        logits = model(input_ids=rows, use_cache=False).logits.float()
    for handle in handles:
        handle.remove()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    return np.array(loads), float(loss), logits


@pytest.fixture(scope="module", params=ROAD)
def road(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("road")
    family, model = BY_NAME[request.param], folder / "model"
    family.model().save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    (folder / "corpus.txt").write_text(TEXT)
    return SimpleNamespace(folder=folder, family=family, model=model)


def command(capsys, *arguments):
    capsys.readouterr()
    status = run_command([str(argument) for argument in (*arguments, "--json")])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out), err


def test_the_road(road, capsys):
    model, folder = road.model, road.folder
    text = ("--text", folder / "corpus.txt", "--tokens", TOKENS, "--seq-len", SEQ_LEN)
    profile, plan = folder / "profile.safetensors", folder / "plan.safetensors"
    told, err = command(capsys, "profile", model, *text, "--out", profile)
    assert told["num_tokens"] == TOKENS and f"{model} runs on cpu in float32" in err

    whole = AutoModelForCausalLM.from_pretrained(model)
    rows = windows(AutoTokenizer.from_pretrained(model))
    loads, loss, logits = count(whole, rows, road.family.num_experts)
    found = CollaborationProfile.load(profile)
    assert np.array_equal([layer.load for layer in found.layers], loads)
    assert found.provenance["request"]["begins_with"] == ["<s>"]

    groups = ["--keep-groups"] if road.family.is_grouped else []
    planning = ["--ranks", 2, "--policy", "priced=0.05", *groups]
    command(capsys, "plan", profile, *planning, "--out", plan)
    sent, _ = command(capsys, "traffic", profile, "--plan", plan)
    assert sent
    measured, _ = command(capsys, "measure", model, "--plan", plan, *text)
    constrained = folder / "constrained"
    command(capsys, "apply", model, "--plan", plan, "--out", constrained)
    under = count(c2r.from_pretrained(constrained), rows, road.family.num_experts)
    assert measured["loss"] == pytest.approx(under[1], rel=1e-5)
    assert measured["loss"] / (1 + measured["loss_increase"]) == pytest.approx(loss, rel=1e-5)
    assert measured["begins_with"] == ["<s>"] and measured["num_tokens"] == 20 * (SEQ_LEN - 1)
    assert_rank_loads(measured, under[0], Plan.load(plan))
    permute_and_export(capsys, road, plan, rows, loads, logits)


def permute_and_export(capsys, road, plan, rows, loads, logits):
    model, folder = road.model, road.folder
    permuted = folder / "permuted"
    command(capsys, "permute", model, "--plan", plan, "--out", permuted)
    renumbered = AutoModelForCausalLM.from_pretrained(permuted)
    again, _, same = count(renumbered, rows, road.family.num_experts)
    torch.testing.assert_close(same, logits, rtol=1e-4, atol=1e-4)
    halves = again.reshape(len(again), 2, -1).sum(-1)
    for layer, load, half in zip(Plan.load(plan).layers, loads, halves, strict=True):
        assert np.bincount(layer.placement, load).tolist() == half.tolist()
    exported, _ = command(
        capsys, "export", "--plan", plan, "--format", "sglang", "--model", model,
        "--out", folder / "placement.json",
    )  # fmt: skip
    assert (folder / "placement.json").is_file() and exported["launch"]


def assert_rank_loads(measured, loads, plan):
    """The measured rows of each rank are those of the experts that were handed over."""
    rows = [
        np.bincount(layer.placement, load, 2)
        for layer, load in zip(plan.layers, loads, strict=True)
    ]
    expected = np.mean([load.max() / load.mean() for load in rows])
    assert measured["rank_load_max_over_mean"] == pytest.approx(expected, rel=1e-6)
