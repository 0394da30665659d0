import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from c2r.adapters.checkpoints import rewrite
from c2r.adapters.huggingface import (
    applied_plan,
    apply,
    find_sites,
    from_pretrained,
    load_model,
    permute_checkpoint,
    profile,
    save_pretrained,
    undo_permutation,
)
from c2r.assets import heldout_files, tiny_folder
from c2r.errors import InputError, ModelError, PlanError, PlanMismatchError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology, LayerPlan, Plan, contiguous_placement, mean_copies
from c2r.plans.model_folder import PERMUTATION_FILE, PLAN_FILE
from tests.adapters.checkpoints.plans import shuffled_plan
from tests.adapters.huggingface.families import FAMILIES

NUM_EXPERTS = 4
PLACEMENTS = {1: [1, 0, 1, 0], 2: [0, 1, 1, 0], 3: [1, 1, 0, 0]}
ORDERS = {1: [1, 3, 0, 2], 2: [0, 3, 1, 2], 3: [2, 3, 0, 1]}
CONFIG = {"model_type": "deepseek_v3", "n_routed_experts": 4, "n_shared_experts": 2, "n_group": 1}


def fp8_layer(number: int) -> dict[str, Tensor]:
    """A MoE layer as DeepSeek-V3 stores it: experts by name, in 8 bits, with scales by block."""
    generator = torch.Generator().manual_seed(number)

    def weights(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    block = f"model.layers.{number}.mlp"
    tensors = {
        f"{block}.gate.weight": weights(NUM_EXPERTS, 6).bfloat16(),
        f"{block}.gate.e_score_correction_bias": weights(NUM_EXPERTS),
        f"{block}.shared_experts.up_proj.weight": weights(NUM_EXPERTS, 6),
        f"model.layers.{number}.input_layernorm.weight": weights(NUM_EXPERTS),
    }
    for expert in range(NUM_EXPERTS):
        name = f"{block}.experts.{expert}.down_proj.weight"
        tensors[name] = weights(6, 5).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = weights(1, 1)
    return tensors


def write(folder: Path, shards: list[dict[str, Tensor]], config: Mapping[str, Any]) -> Path:
    """A model folder of several shards with an index, as on the hub."""
    folder.mkdir()
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    index = {"metadata": {"total_size": 1}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def plan_of(layers: list[int], name: str = "model.layers.{}.mlp.gate") -> Plan:
    return Plan(
        layers=tuple(
            LayerPlan(
                name=name.format(number) if name else "",
                num_experts=NUM_EXPERTS,
                top_k=2,
                policy="c2r",
                strength=1.0,
                partners=np.array([[1], [2], [3], [0]]),
                placement=np.array(PLACEMENTS[number]),
            )
            for number in layers
        ),
        topology=ClusterTopology(num_ranks=2),
    )


def read(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return tensors


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_permuted(old: dict[str, Tensor], new: dict[str, Tensor], number: int) -> None:
    block, order = f"model.layers.{number}.mlp", ORDERS[number]
    for name in ("gate.weight", "gate.e_score_correction_bias"):
        assert torch.equal(new[f"{block}.{name}"], old[f"{block}.{name}"][order])
    for position, expert in enumerate(order):
        for name in ("down_proj.weight", "down_proj.weight_scale_inv"):
            found = new[f"{block}.experts.{position}.{name}"]
            expected = old[f"{block}.experts.{expert}.{name}"]
            assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    for name in (f"{block}.shared_experts.up_proj.weight", f"{block[:-4]}.input_layernorm.weight"):
        assert torch.equal(new[name], old[name])


def split(*numbers: int) -> list[dict[str, Tensor]]:
    """Layers whose experts are spread over two shards, with embeddings before them."""
    tensors = {"model.embed_tokens.weight": torch.arange(12.0).view(4, 3)}
    for number in numbers:
        tensors |= fp8_layer(number)
    names = sorted(tensors)
    return [{n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}]


def test_quantised_experts_move_with_their_scales_between_shards(tmp_path: Path) -> None:
    source = write(tmp_path / "model", split(1, 2), CONFIG)
    report = permute_checkpoint(source, plan_of([1, 2]), tmp_path / "new")
    old, new = read(source), read(tmp_path / "new")
    assert old.keys() == new.keys()
    for number in (1, 2):
        assert_permuted(old, new, number)
    assert (report.num_layers, report.num_tensors) == (2, 20)
    index = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / "new" / shard, "pt") as file:
            assert name in file.keys()  # noqa: SIM118
            assert file.metadata() == {"format": "pt"}
    undo_permutation(tmp_path / "new", tmp_path / "undone")
    assert contents(tmp_path / "undone") == contents(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "new", "undone"]


def test_a_prediction_layer_moves_if_the_plan_names_it(tmp_path: Path) -> None:
    """DeepSeek-V3 stores its multi-token-prediction layer as one layer more."""
    source = write(tmp_path / "model", split(1, 2, 3), CONFIG)
    report = permute_checkpoint(source, plan_of([1, 2]), tmp_path / "without")
    assert report.untouched_layers == ("model.layers.3",)
    old, new = read(source), read(tmp_path / "without")
    assert all(torch.equal(new[n].float(), old[n].float()) for n in old if "layers.3." in n)
    permute_checkpoint(source, plan_of([1, 2, 3]), tmp_path / "with")
    assert_permuted(old, read(tmp_path / "with"), 3)


def test_a_separate_prediction_stack_is_not_mistaken_for_the_model(tmp_path: Path) -> None:
    shards = split(1)
    shards[0] |= {name.replace("model", "mtp"): t for name, t in fp8_layer(1).items()}
    source = write(tmp_path / "model", shards, CONFIG)
    for plan in (plan_of([1]), plan_of([1], name=""), plan_of([1], name="text.layers.{}.mlp.gate")):
        permute_checkpoint(source, plan, tmp_path / "new")
        old, new = read(source), read(tmp_path / "new")
        assert_permuted(old, new, 1)
        assert torch.equal(new["mtp.layers.1.mlp.gate.weight"], old["mtp.layers.1.mlp.gate.weight"])
        shutil.rmtree(tmp_path / "new")


def test_tables_of_expert_ids_are_renumbered(tmp_path: Path) -> None:
    """As the hash layers of DeepSeek-V4 have, where a plan names them."""
    shards = split(1)
    table = torch.tensor([[0, 1], [2, 3], [1, 0]])
    shards[0]["model.layers.1.mlp.gate.tid2eid"] = table
    source = write(tmp_path / "model", shards, CONFIG)
    permute_checkpoint(source, plan_of([1]), tmp_path / "new")
    found = read(tmp_path / "new")["model.layers.1.mlp.gate.tid2eid"]
    assert found.tolist() == [[2, 0], [3, 1], [0, 2]]  # 1, 3, 0 and 2 became 0, 1, 2 and 3
    undo_permutation(tmp_path / "new", tmp_path / "undone")
    assert contents(tmp_path / "undone") == contents(source)
    shards[0]["model.layers.1.mlp.gate.tid2eid"] = table - 1
    source = write(tmp_path / "broken", shards, CONFIG)
    with pytest.raises(InputError, match="ids from -1 to 2"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "other")


def test_a_plan_in_the_folder_comes_along_and_back(tmp_path: Path) -> None:
    model = next(family for family in FAMILIES if family.name == "olmoe").model("eager")
    plan = shuffled_plan(find_sites(model), model)
    apply(model, plan)
    save_pretrained(model, tmp_path / "constrained")
    permute_checkpoint(tmp_path / "constrained", None, tmp_path / "permuted")
    permuted = applied_plan(from_pretrained(tmp_path / "permuted"))
    assert permuted is not None and permuted.fingerprint != plan.fingerprint
    undo_permutation(tmp_path / "permuted", tmp_path / "undone")
    before, after = contents(tmp_path / "constrained"), contents(tmp_path / "undone")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {PLAN_FILE}
    restored = Plan.load(tmp_path / "undone" / PLAN_FILE)
    assert restored.fingerprint == plan.fingerprint
    assert restored.provenance["model_fingerprint"] == plan.provenance["model_fingerprint"]


def test_contiguous_placement_of_the_permuted_model_is_the_planned_one(tmp_path: Path) -> None:
    """The embedded model on real text: as many ranks are visited as the plan says."""
    text = torch.tensor(list(heldout_files()[0].read_bytes()[:512])).view(2, 256)
    batches = [{"input_ids": text}]
    original = load_model(tiny_folder(), dtype=torch.float32)
    found = profile(original, batches)
    plan = make_plan(found, num_ranks=4)
    permute_checkpoint(tiny_folder(), plan, tmp_path / "permuted")
    permuted = AutoModelForCausalLM.from_pretrained(tmp_path / "permuted", dtype=torch.float32)
    for before, after, planned in zip(
        found.layers, profile(permuted, batches).layers, plan.layers, strict=True
    ):
        sets, moved = before.routing_sets(), after.routing_sets()
        assert sets is not None and moved is not None
        contiguous = contiguous_placement(32, 4)
        copies = mean_copies(*moved, contiguous)
        assert copies == pytest.approx(mean_copies(*sets, planned.placement), rel=1e-3)
        assert copies < mean_copies(*sets, contiguous) - 0.1


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "model", split(1, 2), CONFIG)
    written: list[str] = []
    write_shard = rewrite._write_shard

    def interrupted(shard: Any, target: Path, changes: Any) -> None:
        if len(written) == 1:
            target.with_name(f"{target.name}.unfinished").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(target.name)
        write_shard(shard, target, changes)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rewrite, "_write_shard", interrupted)
        permute_checkpoint(source, plan_of([1, 2]), tmp_path / "new")
    partial = tmp_path / "new.partial" / "model"
    assert not (tmp_path / "new").exists() and not (partial / "config.json").exists()
    first = (partial / written[0]).stat().st_ino
    permute_checkpoint(source, plan_of([1, 2]), tmp_path / "new")
    assert (tmp_path / "new" / written[0]).stat().st_ino == first  # was not written again
    permute_checkpoint(source, plan_of([1, 2]), tmp_path / "whole")
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")


def test_a_partial_folder_of_other_work(tmp_path: Path) -> None:
    source = write(tmp_path / "model", split(1, 2), CONFIG)
    (tmp_path / "new.partial" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"new\.partial is left from another"):
        permute_checkpoint(source, plan_of([1, 2]), tmp_path / "new")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_beside_the_rename_it_ends_whole_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    source = write(tmp_path / "model", split(1, 2), CONFIG)
    new, replace = tmp_path / "new", Path.replace

    def killed(path: Path, target: Path) -> None:
        if target != new or moment == "after":
            replace(path, target)
        if target == new:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        permute_checkpoint(source, plan_of([1, 2]), new)
    if moment == "before":
        permute_checkpoint(source, plan_of([1, 2]), new)
    else:
        with pytest.raises(InputError, match="not an empty folder"):
            permute_checkpoint(source, plan_of([1, 2]), new)
    permute_checkpoint(source, plan_of([1, 2]), tmp_path / "whole")
    assert contents(new) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "new", "whole"]


def test_a_plan_is_held_to_the_router_weights_before_and_after(tmp_path: Path) -> None:
    (family,) = (f for f in FAMILIES if f.name == "mixtral")
    model = family.model("eager")
    model.save_pretrained(tmp_path / "model")
    plan = shuffled_plan(find_sites(model), model)
    permute_checkpoint(tmp_path / "model", plan, tmp_path / "permuted")
    assert applied_plan(from_pretrained(tmp_path / "permuted")) is not None

    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight += 1
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(PlanMismatchError, match=r"router weights .*--other-weights"):
        permute_checkpoint(tmp_path / "tuned", plan, tmp_path / "out")
    shutil.copy(tmp_path / "tuned" / "model.safetensors", tmp_path / "permuted")
    with pytest.raises(PlanMismatchError, match="router weights"):
        from_pretrained(tmp_path / "permuted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "permuted", "tuned"]


def test_a_permuted_folder_is_not_permuted_again(tmp_path: Path) -> None:
    source = write(tmp_path / "model", split(1, 2), CONFIG)
    permute_checkpoint(source, plan_of([1, 2]), tmp_path / "new")
    assert (tmp_path / "new" / PERMUTATION_FILE).is_file()
    with pytest.raises(InputError, match=r"permuted already; .*c2r permute .*/new --undo --out"):
        permute_checkpoint(tmp_path / "new", plan_of([1, 2]), tmp_path / "again")
    with pytest.raises(InputError, match="nothing to undo"):
        undo_permutation(source, tmp_path / "again")


def test_weights_in_the_old_order_are_left_out_and_named(tmp_path: Path) -> None:
    source = write(tmp_path / "model", split(1), CONFIG)
    (source / "original").mkdir()
    (source / "original" / "consolidated.00.pth").write_bytes(b"")
    (source / "pytorch_model.bin").write_bytes(b"")
    (source / "templates").mkdir()
    (source / "templates" / "chat.jinja").write_text("x")
    report = permute_checkpoint(source, plan_of([1]), tmp_path / "new")
    assert report.omitted == ("original", "pytorch_model.bin")
    assert (tmp_path / "new" / "templates" / "chat.jinja").read_text() == "x"
    assert not (tmp_path / "new" / "original").exists()


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    source = write(tmp_path / "model", split(1), CONFIG)
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"names model-00002.*does not exist"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_index_that_disagrees_with_the_shards(tmp_path: Path) -> None:
    source = write(tmp_path / "model", split(1), CONFIG)
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"puts model\.norm\.weight in model-00001"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")
    del index["weight_map"]["model.norm.weight"], index["weight_map"]["model.embed_tokens.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"holds model\.embed_tokens\.weight, which"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")


@pytest.mark.parametrize("keep", [4, 40, -10])
def test_a_truncated_shard(tmp_path: Path, keep: int) -> None:
    source = write(tmp_path / "model", split(1), CONFIG)
    path = source / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model-00002.* download it again"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")


def with_tensor(name: str, tensor: Tensor) -> list[dict[str, Tensor]]:
    shards = split(1)
    name = f"model.layers.1.mlp.{name}"
    for shard in shards:
        shard.pop(name, None)
    return [shards[0], {**shards[1], name: tensor}]


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("gate.weight", torch.zeros(5, 6), r"gate\.weight has shape \[5, 6\]; expected 4"),
        ("experts.gate_up_proj", torch.zeros(6, 4, 2), r"gate_up_proj has shape \[6, 4, 2\]"),
        ("experts.2.down_proj.weight", torch.zeros(6, 4), r"of expert 2 is F32 \[6, 4\]"),
        ("experts.4.down_proj.weight", torch.zeros(6, 5), "holds? .*expert 4"),
        ("gate.tid2eid", torch.zeros(4), r"tid2eid is F32 of shape \[4\]"),
    ],
)
def test_unexpected_shapes(tmp_path: Path, name: str, tensor: Tensor, words: str) -> None:
    source = write(tmp_path / "model", with_tensor(name, tensor), CONFIG)
    with pytest.raises(InputError, match=words):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["gate.temperature", "expert_scales", "gate.weight_scale_inv"])
def test_a_tensor_that_may_be_in_the_order_of_the_experts(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "model", with_tensor(name, torch.zeros(4)), CONFIG)
    with pytest.raises(ModelError, match=rf"{name} of shape \[4\].*looked for a router"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")


def test_a_missing_expert(tmp_path: Path) -> None:
    shards = [{n: t for n, t in shard.items() if ".experts.3." not in n} for shard in split(1)]
    source = write(tmp_path / "model", shards, CONFIG)
    with pytest.raises(InputError, match=r"4 experts alike.*expert 3 is missing"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")


def test_an_unknown_family_says_what_was_looked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "model", [{"h.0.w": torch.zeros(4)}], {"model_type": "novel"})
    with pytest.raises(ModelError, match=r"checkpoint of novel; looked for a router \(gate\.wei"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")


def test_a_plan_for_other_layers(tmp_path: Path) -> None:
    source = write(tmp_path / "model", split(1, 2), CONFIG)
    with pytest.raises(PlanMismatchError, match=r"layers\.3\.mlp\.gate"):
        permute_checkpoint(source, plan_of([1, 3]), tmp_path / "new")
    with pytest.raises(PlanMismatchError, match=r"1 layers without names.* 2 MoE layers"):
        permute_checkpoint(source, plan_of([1], name=""), tmp_path / "new")


def test_two_routers_in_a_layer(tmp_path: Path) -> None:
    source = write(tmp_path / "model", split(1), CONFIG)
    with pytest.raises(ModelError, match="2 routers in 1 layers"):
        permute_checkpoint(source, plan_of([1, 1]), tmp_path / "new")


@pytest.mark.parametrize("stated", [{"n_group": 2}, {"n_group": None}])
def test_groups_that_the_plan_splits(tmp_path: Path, stated: dict[str, Any]) -> None:
    """Where config.json is silent, transformers' default for the family counts: 8 groups."""
    config = {**CONFIG, **stated}
    if config["n_group"] is None:
        del config["n_group"]
    source = write(tmp_path / "model", split(1), config)
    with pytest.raises(PlanError, match=f"{stated['n_group'] or 8} groups of"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")


def test_a_quantisation_that_names_single_experts(tmp_path: Path) -> None:
    ignored = {"quantization_config": {"ignore": ["model.layers.1.mlp.experts.2.down_proj"]}}
    source = write(tmp_path / "model", split(1), {**CONFIG, **ignored})
    with pytest.raises(ModelError, match="names single experts"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "model", split(1), CONFIG)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "full")
    with pytest.raises(InputError, match="cannot write"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "no" / "where")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="has 100 free"):
        permute_checkpoint(source, plan_of([1]), tmp_path / "new")
    assert not list(tmp_path.glob("new*/*.safetensors"))


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        permute_checkpoint(tmp_path, plan_of([1]), tmp_path / "new")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="save_pretrained"):
        permute_checkpoint(tmp_path, plan_of([1]), tmp_path / "new")
    with pytest.raises(InputError, match="carries no plan"):
        permute_checkpoint(tiny_folder(), None, tmp_path / "new")
