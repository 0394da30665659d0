"""Shares the embedded model under a plan in every way, and loads it again; prints JSON.

Run by test_hub.py, with HF_ENDPOINT and HF_HOME in the environment, which libraries read once.
`share` writes, pushes and loads by name; `load` loads again, and by commands, from the cache.
"""

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import c2r
from c2r.adapters.huggingface import applied_plan, find_sites, load_tokenizer
from c2r.assets import tiny_folder
from c2r.cli import run_command
from tests.adapters.huggingface.checks import small_plan

IDS = torch.arange(3, 51).reshape(2, 24)
NAMES = ("me/constrained", "me/plan", "me/tuned", "me/own", "me/saved")


def logits(model):
    return model(input_ids=IDS).logits


def share(folder: Path) -> dict:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    for each in (model, tokenizer):
        each.push_to_hub("me/base")
    identity = c2r.profile(model, [{"input_ids": IDS}]).provenance["model_fingerprint"]
    plan = replace(small_plan(find_sites(model)), provenance={"model_fingerprint": identity})
    c2r.apply(model, plan)
    expected = dict.fromkeys(NAMES, logits(model))

    c2r.save_pretrained(model, folder / "constrained", tokenizer)
    c2r.save_plan_only(plan, folder / "plan", "me/base")
    model.push_to_hub("me/own")
    model.save_pretrained(folder / "saved", push_to_hub=True, repo_id="me/saved")
    window = {"input_ids": IDS[0], "labels": IDS[0], "position_ids": torch.arange(24)}
    settings = c2r.FinetuneSettings(num_steps=1, batch_size=1, learning_rate=1e-3)
    c2r.finetune(model, [window], plan, settings, folder / "tuned", tokenizer=tokenizer)
    expected["me/tuned"] = logits(model)
    for name in ("constrained", "plan", "tuned"):
        c2r.push_to_hub(folder / name, f"me/{name}")
    torch.save(expected, folder / "expected.pt")
    size = sum(path.stat().st_size for path in (folder / "plan").rglob("*") if path.is_file())
    loaded = load(folder)
    return {"plan": plan.fingerprint, "bytes": size, "loaded": loaded}


def load(folder: Path) -> dict:
    expected = torch.load(folder / "expected.pt")
    found = {}
    for name in NAMES:
        model = c2r.from_pretrained(name, dtype=torch.float32)
        is_equal = torch.equal(logits(model), expected[name])
        found[name] = {"equal": is_equal, "plan": applied_plan(model).fingerprint}
    for name in ("constrained", "plan", "tuned"):
        model = c2r.from_pretrained(folder / name, dtype=torch.float32)
        is_equal = torch.equal(logits(model), expected[f"me/{name}"])
        found[name] = {"equal": is_equal, "plan": applied_plan(model).fingerprint}
    for name in ("me/constrained", "me/plan"):
        assert load_tokenizer(name).vocab_size > 2
    return found


def load_offline(folder: Path) -> dict:
    found = load(folder)
    for name in ("me/constrained", "me/plan"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = run_command(["measure", name, "--tokens", "256", "--json"])
        document = json.loads(printed.getvalue())
        found[f"c2r measure {name}"] = {"equal": status == 0, "plan": document["plan_fingerprint"]}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    task = {"share": share, "load": load_offline}[sys.argv[1]]
    print(json.dumps(task(Path(sys.argv[2]))))
