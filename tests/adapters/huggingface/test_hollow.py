"""A model with made-up weights beside its routers', and the folder that is checked by it."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig

from c2r.adapters.huggingface import (
    applied_plan,
    apply,
    constrain_folder,
    find_sites,
    fingerprint,
    from_pretrained,
    save_pretrained,
)
from c2r.adapters.huggingface.hollow import hollow_model
from c2r.adapters.huggingface.routers.sites import RouterSite
from c2r.assets import tiny_folder
from c2r.errors import InputError, ModelError, PlanMismatchError
from c2r.plans import Plan
from tests.adapters.huggingface.checks import run, small_plan
from tests.adapters.huggingface.families import FAMILIES

EAGER = {"experts_implementation": "eager", "attn_implementation": "eager"}
BY_NAME = {family.name: family for family in FAMILIES}
# Each stores or chooses in another way; all families were run once.
WAYS = (
    *("mixtral", "gpt_oss", "granitemoe", "gemma4_text", "minimax_m2", "aria_text", "dbrx"),
    *("deepseek_v3 (groups)", "deepseek_v4", "longcat_flash", "zaya", "phimoe", "jetmoe"),
    *("ernie4_5_moe", "llama4_text", "jamba", "qwen3_next"),
)
SHAPE = [field.name for field in fields(RouterSite) if field.name != "module"]


def read(folder):
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("name", WAYS)
def test_it_routes_where_the_whole_model_does_by_the_same_weights(name, tmp_path):
    family = BY_NAME[name]
    model = family.model(family.experts[-1])
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    sites = find_sites(model)
    hollow = hollow_model(tmp_path)
    found = find_sites(hollow)
    for ours, theirs in zip(found, sites, strict=True):
        assert [getattr(ours, name) for name in SHAPE] == [getattr(theirs, name) for name in SHAPE]
    assert fingerprint(hollow, found) == fingerprint(model, sites)
    parameters = [p for p in hollow.parameters() if p.numel() > 1]
    assert all(p.untyped_storage().nbytes() <= p.nbytes for p in parameters)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_the_folder_is_what_the_whole_model_is_saved_as(name, tmp_path):
    source = tmp_path / "model"
    model = BY_NAME[name].model("eager")
    model.save_pretrained(source, max_shard_size="20kB")
    AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(source)
    plan = small_plan(find_sites(model))
    constrain_folder(source, plan, tmp_path / "streamed")
    apply(model, plan)
    save_pretrained(model, tmp_path / "whole")
    ours, theirs = read(tmp_path / "streamed"), read(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for path in source.glob("*.safetensors"):
        assert (tmp_path / "streamed" / path.name).read_bytes() == path.read_bytes()
    loaded = from_pretrained(tmp_path / "streamed", **EAGER)
    assert torch.equal(run(loaded), run(model))
    assert (
        applied_plan(loaded).provenance
        == Plan.load(tmp_path / "whole" / "c2r" / "plan.safetensors").provenance
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "streamed").vocab_size > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "streamed", "whole"]


def test_other_router_weights_are_refused_unless_they_are_accepted(tmp_path):
    model = BY_NAME["mixtral"].model("eager")
    sites = find_sites(model)
    plan = replace(small_plan(sites), provenance={"model_fingerprint": fingerprint(model, sites)})
    with torch.no_grad():
        sites[0].module.weight += 1
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(PlanMismatchError, match="router weights"):
        constrain_folder(tmp_path / "tuned", plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    constrain_folder(tmp_path / "tuned", plan, tmp_path / "out", strict=False)
    assert applied_plan(from_pretrained(tmp_path / "out")).fingerprint == plan.fingerprint


def test_folders_that_cannot_be_read(tmp_path):
    plan = small_plan(find_sites(BY_NAME["mixtral"].model("eager")))
    with pytest.raises(InputError, match="there is no model folder"):
        constrain_folder(tmp_path / "none", plan, tmp_path / "out")
    BY_NAME["mixtral"].config().save_pretrained(tmp_path / "empty")
    with pytest.raises(InputError, match="neither model"):
        constrain_folder(tmp_path / "empty", plan, tmp_path / "out")
    model = BY_NAME["mixtral"].model("eager")
    weights = {n: t for n, t in model.state_dict().items() if "gate.weight" not in n}
    model.save_pretrained(tmp_path / "routerless", state_dict=weights)
    with pytest.raises(ModelError, match=r"hold the router's model\.layers\.0\.mlp\.gate\.weight"):
        constrain_folder(tmp_path / "routerless", plan, tmp_path / "out")
    config = json.loads((tmp_path / "routerless" / "config.json").read_text())
    model.save_pretrained(tmp_path / "wide")
    config["hidden_size"] *= 2
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="of shape"):
        constrain_folder(tmp_path / "wide", plan, tmp_path / "out")


PEAK = """
import resource, sys
from c2r.cli import run_command
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
from c2r.adapters.huggingface import constrain_folder
before = peak()
assert run_command(sys.argv[1:]) == 0
print(peak() - before)
"""


def test_the_memory_is_far_below_the_model(tmp_path):
    """A model of 100 MB in several files: what is held beside the program is a small part."""
    sizes = {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    config = Qwen3MoeConfig(
        **sizes, **heads, vocab_size=4096, num_hidden_layers=2, num_experts_per_tok=4
    )
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model", max_shard_size="20MB")
    small_plan(find_sites(hollow_model(tmp_path / "model"))).save(tmp_path / "plan")
    files = list((tmp_path / "model").glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files) >> 20
    assert len(files) > 4 and size > 90
    command = ["apply", "model", "--plan", "plan", "--out", "out", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.splitlines()[-1]) < size / 3
