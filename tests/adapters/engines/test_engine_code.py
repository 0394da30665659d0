"""Exports and launch lines, read by the engines' own code; `scripts/engines` runs it."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from c2r.adapters.engines import ImportFormat, commands_in_order, export_plan, import_traces
from c2r.errors import InputError
from c2r.plans import NO_EXPERTS, ClusterTopology, LayerPlan, Plan
from c2r.routing import make_policy
from tests.adapters.engines.recorded_flags import FLAGS

PROGRAM = Path(__file__).with_name("engine_programs.py")
PAGE = Path(__file__).parents[3] / "docs" / "engines.md"
pytestmark = pytest.mark.engines


def needs(engine):
    variable = f"C2R_{engine.upper()}_PYTHON"
    return pytest.mark.skipif(variable not in os.environ, reason=f"{variable} names no environment")


def ask(engine, program, *arguments, **environment):
    python = os.environ[f"C2R_{engine.upper()}_PYTHON"]
    done = subprocess.run(
        [python, PROGRAM, program, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def plan_of(num_replicas=0):
    rng = np.random.default_rng(0)
    layers = []
    for number in (1, 2):
        placement = rng.permutation(np.arange(16) % 4)
        others = [np.flatnonzero(placement != rank)[:num_replicas] for rank in range(4)]
        layers.append(
            LayerPlan(
                name=f"model.layers.{number}.mlp.gate",
                num_experts=16,
                top_k=4,
                policy="top_k",
                strength=0.0,
                partners=np.empty((16, 0), dtype=np.int64),
                placement=placement,
                replicas=np.stack(others) if num_replicas else NO_EXPERTS,
            )
        )
    return Plan(layers=tuple(layers), topology=ClusterTopology(num_ranks=4))


@needs("sglang")
@pytest.mark.parametrize("num_replicas", [0, 2])
def test_sglang_places_the_experts_of_the_file_as_the_plan_does(tmp_path, num_replicas):
    plan, path = plan_of(num_replicas), tmp_path / "plan.json"
    export_plan(plan, "sglang", path)
    found = ask("sglang", "sglang_map", path, 3, 16, 4, 4 * num_replicas)
    for number, layer in zip((1, 2), plan.layers, strict=True):
        by_rank = np.array(found["experts"][number]).reshape(4, -1)
        for rank, experts in enumerate(by_rank):
            assert sorted(experts) == sorted(layer.experts_of(rank))
        for expert, slots in enumerate(found["slots"][number]):
            held = [slot for slot in slots if slot >= 0]
            assert held, f"expert {expert} is nowhere"
            assert all(by_rank.ravel()[slot] == expert for slot in held)


def recorded(folder, mode, num_replicas):
    """The experts chosen in two MoE layers, and the dump that SGLang's recorder wrote of them."""
    export_plan(plan_of(num_replicas), "sglang", folder / "plan.json")
    drawn = np.random.default_rng(1).random((3, 20, 2, 16)).argsort(-1)[..., :4]
    np.save(folder / "chosen.npy", drawn)
    files = folder / "plan.json", folder / "chosen.npy"
    ask(
        "sglang", "sglang_record", mode, *files, 16, 4, 4 * num_replicas,
        SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR=str(folder),
    )  # fmt: skip
    (dump,) = folder.glob("expert_distribution_recorder_*.pt")
    return drawn.reshape(-1, 2, 4), dump


@needs("sglang")
@pytest.mark.parametrize("num_replicas", [0, 2])
def test_the_dump_of_sglangs_recorder_is_imported_to_exact_counts(tmp_path, num_replicas):
    chosen, dump = recorded(tmp_path, "per_token", num_replicas)
    found = import_traces(ImportFormat.SGLANG_PER_TOKEN, [dump]).profile
    assert [layer.name for layer in found.layers] == ["layers.1", "layers.2"]
    for layer, ids in zip(found.layers, np.moveaxis(chosen, 1, 0), strict=True):
        sets, counts = np.unique(np.sort(ids, axis=1), axis=0, return_counts=True)
        order = np.lexsort(layer.sets.experts.T[::-1])
        assert (layer.sets.experts[order] == sets).all()
        assert (layer.sets.counts[order] == counts).all()


@needs("sglang")
@pytest.mark.parametrize("mode", ["per_pass", "stat"])
def test_a_dump_of_loads_only_is_refused(tmp_path, mode):
    _, dump = recorded(tmp_path, mode, num_replicas=0)
    with pytest.raises(InputError, match=f"is of recorder mode {mode}"):
        import_traces(ImportFormat.SGLANG_PER_TOKEN, [dump])


@needs("sglang")
def test_sglangs_parser_takes_the_launch_line(tmp_path):
    written = export_plan(plan_of(), "sglang", tmp_path / "plan.json")
    flags = ask("sglang", "sglang_flags", written.commands[0].line)
    assert flags["init_expert_location"] == str(tmp_path / "plan.json")
    assert (flags["ep_size"], flags["moe_a2a_backend"]) == (4, "deepep")
    assert flags["ep_num_redundant_experts"] == 0


@needs("vllm")
def test_vllms_parser_takes_the_launch_lines(tmp_path):
    lines = lines_of_page("vllm serve PERMUTED")
    assert len(lines) == 3
    for line in lines:
        flags = ask("vllm", "vllm_flags", line)
        assert flags["all2all_backend"] == "deepep_high_throughput"
        assert flags["enable_expert_parallel"]
    assert ask("vllm", "vllm_flags", "vllm serve MODEL --enable-return-routed-experts")[
        "enable_return_routed_experts"
    ]
    written = export_plan(plan_of(), "vllm-ascend", tmp_path / "map.json")
    flags = ask("vllm", "vllm_flags", written.commands[0].line)
    assert flags["additional_config"]["eplb_config"] == {
        "expert_map_path": str(tmp_path / "map.json")
    }


@needs("vllm")
def test_vllm_has_no_first_placement_yet():
    config = '{"initial_expert_map_path": "map.json"}'
    with pytest.raises(AssertionError, match="initial_expert_map_path"):
        ask("vllm", "vllm_flags", f"vllm serve MODEL --enable-eplb --eplb-config '{config}'")


@pytest.mark.parametrize(
    ("engine", "release"),
    [
        pytest.param("vllm", "vLLM 0.32.0", marks=needs("vllm")),
        pytest.param("sglang", "SGLang 0.5.23", marks=needs("sglang")),
    ],
)
def test_the_flags_recorded_of_a_release_are_its_own(engine, release):
    known = ask(engine, f"{engine}_options")
    for flag, values in FLAGS[release].items():
        assert flag in known
        if values is True or values is None:
            assert (known[flag] is True) == (values is True), flag
        else:
            assert known[flag] is None or set(values) <= set(known[flag]), flag


@pytest.mark.parametrize(
    ("engine", "release"),
    [
        pytest.param("vllm", "vLLM 0.32.0", marks=needs("vllm")),
        pytest.param("sglang", "SGLang 0.5.23", marks=needs("sglang")),
    ],
)
@pytest.mark.parametrize("num_nodes", [1, 2])
def test_its_parser_takes_the_commands_for_a_permuted_checkpoint(engine, release, num_nodes):
    topology = ClusterTopology(num_ranks=16, num_nodes=num_nodes)
    for _, line in commands_in_order("renumbered", topology)[release]:
        assert ask(engine, f"{engine}_flags", line)


@needs("sglang")
def test_sglangs_parser_takes_the_lines_of_the_page():
    lines = lines_of_page("python -m sglang.launch_server")
    assert len(lines) == 2
    for line in lines:
        assert ask("sglang", "sglang_flags", line)["model_path"] == "MODEL"


@needs("megatron")
def test_megatron_limits_tokens_to_ranks_as_the_policy_group_limited_does(tmp_path):
    scores = torch.rand(256, 16, generator=torch.Generator().manual_seed(0))
    (tmp_path / "scores.json").write_text(json.dumps(scores.tolist()))
    found = ask("megatron", "megatron_groups", tmp_path / "scores.json", 4, 2, 4)
    layer = LayerPlan(
        name="",
        num_experts=16,
        top_k=4,
        policy="group_limited",
        strength=2.0,
        partners=np.empty((16, 0), dtype=np.int64),
        placement=np.arange(16) // 4,
    )
    ids = make_policy(layer)(scores, 4).sort(-1).values
    assert ids.tolist() == found
    assert ids.tolist() != scores.topk(4).indices.sort(-1).values.tolist()


def lines_of_page(start):
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{re.escape(start)}.*$", text, flags=re.MULTILINE)
