"""Exports: against schemas written from the engines' descriptions, and read back to the plan."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from c2r.adapters.engines import (
    ExportFormat,
    check_any_export,
    check_export,
    commands_in_order,
    export_plan,
    exports,
    import_traces,
    layer_placement,
    plan_slots,
    sglang,
)
from c2r.errors import ArtifactError, InputError, PlanError, PlanMismatchError
from c2r.plans import NO_EXPERTS, ClusterTopology, LayerPlan, Plan
from tests.adapters.engines.recorded_flags import MEGATRON_ARGUMENTS, parse, parser_of

RANKS, EXPERTS, LAYERS = 4, 8, (1, 2, 4)  # layers 0 and 3 are dense


def make_plan(num_replicas: int = 0, layers: tuple[int, ...] = LAYERS, **changes: Any) -> Plan:
    rng = np.random.default_rng(5)
    made = []
    for number in layers:
        placement = rng.permutation(np.arange(EXPERTS) % RANKS)
        others = [rng.permutation(np.flatnonzero(placement != rank)) for rank in range(RANKS)]
        replicas = np.array([row[:num_replicas] for row in others], dtype=np.int64)
        layer = LayerPlan(
            name=f"model.layers.{number}.mlp.gate",
            num_experts=EXPERTS,
            top_k=4,
            policy="c2r",
            strength=3.0,
            partners=np.array([np.delete(np.arange(EXPERTS), i)[:3] for i in range(EXPERTS)]),
            placement=placement,
            replicas=replicas if num_replicas else NO_EXPERTS,
        )
        made.append(replace(layer, **changes))
    return Plan(layers=tuple(made), topology=ClusterTopology(num_ranks=RANKS))


def rank_of_slot(plan: Plan, slot: int) -> int:
    return slot // (plan_slots(plan).num_slots // RANKS)


def assert_row(plan: Plan, layer: LayerPlan, row: list[int]) -> None:
    """A row of slots holds each expert where the plan places it, and its copies."""
    found: dict[int, set[int]] = {}
    for slot, expert in enumerate(row):
        found.setdefault(expert, set()).add(rank_of_slot(plan, slot))
    expected: dict[int, set[int]] = {}
    for rank in range(RANKS):
        for expert in layer.experts_of(rank).tolist():
            expected.setdefault(expert, set()).add(rank)
    assert found == expected


@pytest.mark.parametrize("num_replicas", [0, 1, 2])
@pytest.mark.parametrize("format_", [f for f in ExportFormat if f is not ExportFormat.MEGATRON])
def test_read_back_to_the_same_plan(
    format_: ExportFormat, num_replicas: int, tmp_path: Path
) -> None:
    plan = make_plan(num_replicas)
    path = tmp_path / "plan.json"
    export_plan(plan, format_, path)
    check_export(plan, format_, path)
    other = make_plan(num_replicas, placement=plan.layers[0].placement[::-1])
    with pytest.raises(InputError):
        check_export(other, format_, path)
    with pytest.raises(InputError):
        check_export(make_plan(3), format_, path)


@pytest.mark.parametrize("num_replicas", [0, 1])
def test_sglang_schema(num_replicas: int, tmp_path: Path) -> None:
    """One key only; a row for each layer, dense ones too; every expert in some slot of each."""
    plan = make_plan(num_replicas)
    export_plan(plan, ExportFormat.SGLANG, tmp_path / "plan.json", num_layers=6)
    document = json.loads((tmp_path / "plan.json").read_text())
    assert list(document) == ["physical_to_logical_map"]
    rows = document["physical_to_logical_map"]
    assert len(rows) == 6 and {len(row) for row in rows} == {EXPERTS + RANKS * num_replicas}
    for row in rows:
        assert set(row) == set(range(EXPERTS))
    for number in (0, 3, 5):
        assert rows[number][:EXPERTS] == list(range(EXPERTS))
    for layer, number in zip(plan.layers, LAYERS, strict=True):
        assert_row(plan, layer, rows[number])


def test_sglang_without_a_model_ends_with_the_last_moe_layer() -> None:
    plan = make_plan()
    rows = json.loads(sglang.encode(plan_slots(plan), plan, None))["physical_to_logical_map"]
    assert len(rows) == 5
    with pytest.raises(InputError, match="names layer 4, but the model has 3 layers"):
        sglang.encode(plan_slots(plan), plan, 3)


def test_vllm_schema(tmp_path: Path) -> None:
    """Pull request 49572: a list for each MoE layer, physical to logical."""
    plan = make_plan(1)
    written = export_plan(plan, ExportFormat.VLLM, tmp_path / "plan.json")
    rows = json.loads((tmp_path / "plan.json").read_text())
    assert len(rows) == len(LAYERS)
    for layer, row in zip(plan.layers, rows, strict=True):
        assert_row(plan, layer, row)
    assert "open proposal" in written.note and "no released vLLM" in written.note


def test_trtllm_schema(tmp_path: Path) -> None:
    """Absolute numbers of MoE layers; `num_slots` ids each; 0 updates is the static balancer."""
    plan = make_plan(1)
    export_plan(plan, ExportFormat.TENSORRT_LLM, tmp_path / "plan.yaml")
    document = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert set(document) == {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}
    assert (document["num_slots"], document["layer_updates_per_iter"]) == (EXPERTS + RANKS, 0)
    assert tuple(document["initial_global_assignments"]) == LAYERS
    for layer, number in zip(plan.layers, LAYERS, strict=True):
        row = document["initial_global_assignments"][number]
        assert len(row) == document["num_slots"]
        assert_row(plan, layer, row)


def test_vllm_ascend_schema(tmp_path: Path) -> None:
    plan = make_plan(1)
    export_plan(plan, ExportFormat.VLLM_ASCEND, tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert set(document) == {"moe_layer_count", "layer_list"}
    assert document["moe_layer_count"] == len(document["layer_list"]) == len(LAYERS)
    for position, (layer, entry) in enumerate(
        zip(plan.layers, document["layer_list"], strict=True)
    ):
        assert (entry["layer_id"], entry["device_count"]) == (position, RANKS)
        for rank, device in enumerate(entry["device_list"]):
            assert device["device_id"] == rank
            assert device["device_expert"] == layer.experts_of(rank).tolist()


def test_megatron_schema(tmp_path: Path) -> None:
    """Flags that its argument parser takes, within the limits that it checks."""
    import argparse

    plan = replace(make_plan(), provenance={"predicted": {"copies": 1.7}})
    export_plan(plan, ExportFormat.MEGATRON, tmp_path / "plan.args")
    parser = argparse.ArgumentParser()
    for name in ("num-experts", "expert-model-parallel-size", "moe-router-topk"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("moe-router-num-groups", "moe-router-group-topk"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--moe-token-dispatcher-type", choices=["allgather", "alltoall", "flex"])
    flags = parser.parse_args(shlex.split((tmp_path / "plan.args").read_text()))
    assert (flags.num_experts, flags.expert_model_parallel_size) == (EXPERTS, RANKS)
    assert flags.num_experts % flags.moe_router_num_groups == 0
    assert flags.moe_router_topk == 4 and flags.moe_router_group_topk == 2  # above 1.7
    check_export(plan, ExportFormat.MEGATRON, tmp_path / "plan.args")
    with pytest.raises(InputError, match="export it again"):
        check_export(make_plan(), ExportFormat.MEGATRON, tmp_path / "plan.args")
    with pytest.raises(PlanError, match="without replicas"):
        export_plan(make_plan(1), ExportFormat.MEGATRON, tmp_path / "replicated.args")


def started(plan: Plan, format_: str, path: Path, model: str = "a model") -> list[dict[str, Any]]:
    """The flags of the commands that start an engine with the plan, one for each."""
    written = export_plan(plan, format_, path, model=model)
    assert "placement saves no row" in written.note
    return [parse(written.release, line) for _, line in written.commands]


def test_commands_tell_where_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "it's a plan.json"
    (sglang_,) = started(make_plan(1), "sglang", path)
    assert (sglang_["model_path"], sglang_["init_expert_location"]) == ("a model", str(path))
    assert (sglang_["ep_size"], sglang_["ep_num_redundant_experts"]) == ("4", "4")
    (ascend,) = started(make_plan(1), "vllm-ascend", path)
    assert json.loads(ascend["additional_config"])["eplb_config"] == {"expert_map_path": str(path)}
    (trtllm,) = started(make_plan(1), "trtllm", tmp_path / "plan.yaml")
    config = yaml.safe_load(trtllm["config"])
    assert config["enable_attention_dp"]
    assert config["moe_config"]["load_balancer"] == str(tmp_path / "plan.yaml")
    (megatron,) = started(make_plan(), "megatron", tmp_path / "moe.args")
    assert megatron["program"] == ["pretrain_gpt.py", "$(cat", f"{tmp_path / 'moe.args'})"]
    arguments = shlex.split((tmp_path / "moe.args").read_text())
    assert parser_of(MEGATRON_ARGUMENTS).parse_args(arguments).num_experts == str(EXPERTS)


def test_a_command_for_each_of_two_nodes(tmp_path: Path) -> None:
    plan = replace(make_plan(), topology=ClusterTopology(num_ranks=RANKS, num_nodes=2))
    path = tmp_path / "plan.json"
    first, second = started(plan, "sglang", path)
    assert [first["node_rank"], second["node_rank"]] == ["0", "1"]
    assert first["nnodes"] == second["nnodes"] == "2" and first["tp_size"] == "4"
    assert first["dist_init_addr"] == second["dist_init_addr"] == "NODE0:20000"
    for format_ in ("vllm", "vllm-ascend"):
        first, second = started(plan, format_, path)
        assert [first["headless"], second["headless"]] == [False, True]
        assert [first["data_parallel_start_rank"], second["data_parallel_start_rank"]] == [
            None,
            "2",
        ]
        for node in (first, second):
            assert (node["data_parallel_size"], node["data_parallel_size_local"]) == ("4", "2")
            assert node["data_parallel_address"] == "NODE0"
    (trtllm,) = started(plan, "trtllm", path)
    assert (trtllm["ep_size"], trtllm["gpus_per_node"]) == ("4", "2")
    first, second = started(plan, "megatron", path)
    assert [first["node_rank"], second["node_rank"]] == ["0", "1"]
    assert first["nproc_per_node"] == second["nproc_per_node"] == "2"
    written = export_plan(plan, "vllm", path)
    assert [where for where, _ in written.commands] == ["on node 0", "on node 1"]


def test_what_no_release_loads_starts_on_a_permuted_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for format_ in ExportFormat:
        written = export_plan(make_plan(), format_, path)
        assert written.loads_placement == (format_ not in ("vllm", "megatron"))
    (line,) = (line for _, line in export_plan(make_plan(), "vllm", path).commands)
    assert "--enable-eplb" not in line and str(path) not in line
    found = commands_in_order("renumbered", ClusterTopology(num_ranks=16, num_nodes=2))
    assert list(found) == ["vLLM 0.32.0", "SGLang 0.5.23"]
    for release, commands in found.items():
        flags = [parse(release, line) for _, line in commands]
        assert len(flags) == 2 and "renumbered" in (
            flags[0].get("model"),
            flags[0].get("model_path"),
        )


def test_a_name_that_an_engine_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"a file whose name ends in \.json; write to .*/map\.json"
    ):
        export_plan(make_plan(), "vllm-ascend", tmp_path / "map")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_any_format_is_held_against_a_plan(tmp_path: Path) -> None:
    plan, path = make_plan(1), tmp_path / "plan.json"
    other = make_plan(1, placement=plan.layers[0].placement[::-1])
    for format_ in ExportFormat:
        if format_ is not ExportFormat.MEGATRON:
            export_plan(plan, format_, path)
            check_any_export(plan, path)
            with pytest.raises(InputError, match=r"does not place the experts|is damaged"):
                check_any_export(other, path)
    for text in ("", "{}", "[[0", "a: 1"):
        path.write_text(text)
        with pytest.raises(InputError, match="is no placement"):
            check_any_export(plan, path)
    with pytest.raises(InputError, match="cannot read"):
        check_any_export(plan, tmp_path / "missing.json")


def test_slots_and_back() -> None:
    plan = make_plan(2)
    slots = plan_slots(plan)
    assert (slots.num_slots, slots.num_replicas) == (16, 8)
    for layer, number in zip(plan.layers, LAYERS, strict=True):
        placement, replicas = layer_placement(slots.layers[number], EXPERTS, RANKS)
        assert np.array_equal(placement, layer.placement)
        assert np.array_equal(replicas, layer.replicas)


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ([0, 1, 2, 0, 3, 0], "6 slots of 4 experts are not equal on 4"),
        ([0, 1, 0, 2, 2, 1, 3, 1], "hold every expert once"),
        ([0, 0, 1, 0, 2, 0, 3, 0], "holds an expert twice"),
    ],
)
def test_slots_that_no_plan_has(slots: list[int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        layer_placement(np.array(slots), 4, 4)


def test_slots_that_the_ranks_cannot_share() -> None:
    """60 experts do not split over 8 ranks; 64 slots would."""
    placement = np.sort(np.arange(60) % 8)
    plan = make_plan(num_experts=60, placement=placement)
    plan = replace(plan, topology=ClusterTopology(num_ranks=8))
    with pytest.raises(PlanError, match=r"60 experts and 0 .* is 64 \(4 replicas\).*4, 5, 6, 10"):
        plan_slots(plan)


def test_plans_that_do_not_tell_their_layers(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatchError, match="layer 0 of the plan has no router path"):
        export_plan(make_plan(name=""), ExportFormat.SGLANG, tmp_path / "plan")
    with pytest.raises(PlanMismatchError, match="same number"):
        export_plan(make_plan(layers=(1, 1)), ExportFormat.SGLANG, tmp_path / "plan")
    mixed = make_plan()
    wider = make_plan(num_experts=12, placement=np.arange(12) % 4)
    mixed = replace(mixed, layers=(mixed.layers[0], wider.layers[1]))
    with pytest.raises(PlanError, match=r"\[8, 12\] experts"):
        export_plan(mixed, ExportFormat.SGLANG, tmp_path / "plan")
    uneven = replace(mixed, layers=(make_plan().layers[0], make_plan(1).layers[1]))
    with pytest.raises(PlanError, match=r"fill \[8, 12\] slots"):
        export_plan(uneven, ExportFormat.SGLANG, tmp_path / "plan")
    assert list(tmp_path.iterdir()) == []


def test_slots_are_counted_once_for_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Plan] = []
    monkeypatch.setattr(
        exports, "plan_slots", lambda plan: counted.append(plan) or plan_slots(plan)
    )
    for format_ in ExportFormat:
        plan = make_plan()
        export_plan(plan, format_, tmp_path / "plan.json")
        assert counted.pop() is plan and counted == []


def test_an_unknown_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'tgi' is unknown; choose sglang, vllm, "):
        export_plan(make_plan(), "tgi", tmp_path / "plan")
    with pytest.raises(
        InputError, match="'stat' is unknown; choose c2r-pickle, sglang-per-token, "
    ):
        import_traces("stat", [tmp_path])


def test_files_that_are_no_exports(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    for format_, text in [
        (ExportFormat.SGLANG, "{}"),
        (ExportFormat.SGLANG, "not json"),
        (ExportFormat.VLLM, "[[0, 1]]"),
        (ExportFormat.TENSORRT_LLM, "num_slots: 8"),
        (ExportFormat.VLLM_ASCEND, '{"layer_list": []}'),
        (ExportFormat.MEGATRON, "num_experts 8"),
    ]:
        path.write_text(text)
        with pytest.raises((InputError, ArtifactError)):
            check_export(make_plan(), format_, path)
