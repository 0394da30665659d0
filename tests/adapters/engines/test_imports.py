"""Traces in every format, written as the engines write them from the routing of a real model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from c2r.adapters.engines import ImportFormat, ModelLayers, import_traces, shares
from c2r.adapters.huggingface import capture, load_model, read_model_layers
from c2r.assets import heldout_files, tiny_folder
from c2r.errors import InputError
from c2r.profiling import CollaborationProfile
from c2r.traces import ProfileBuilder

EXPERTS, TOP_K, NUM_LAYERS = 32, 4, 4
Ids = list[np.ndarray]


@pytest.fixture(scope="module")
def routed() -> tuple[Ids, CollaborationProfile]:
    """What the embedded model chose on 1,024 bytes of real text: ids by layer, and the profile."""
    model = load_model(tiny_folder(), dtype=torch.float32)
    text = heldout_files()[0].read_bytes()[:1024]
    tokens = torch.tensor(list(text)).view(4, 256) % model.config.vocab_size
    builder = ProfileBuilder()
    with capture(model) as recorder, torch.no_grad():
        model(input_ids=tokens, use_cache=False)
        trace = recorder.take()
    builder.update(trace)
    profile = builder.build()
    assert profile is not None
    return [layer.expert_ids.numpy() for layer in trace.layers], profile


@pytest.fixture(scope="module")
def model() -> ModelLayers:
    return read_model_layers(tiny_folder())


def sglang_dump(ids: Ids, rank: int = 0, dense: int = 0, **changes: Any) -> dict[str, Any]:
    """A per-token dump: slots, 8 wide, in a buffer longer than the batch, dense layers -1."""
    rng = np.random.default_rng(7)
    slots = np.stack([rng.permutation(np.arange(EXPERTS + 8) % EXPERTS) for _ in range(4 + dense)])
    buffer = np.full((4 + dense, len(ids[0]) + 3, 8), -1, dtype=np.int32)
    for layer, chosen in enumerate(ids):
        slot_of = np.argmax(slots[dense + layer][None, :] == np.arange(EXPERTS)[:, None], axis=1)
        buffer[dense + layer, : len(chosen), :TOP_K] = slot_of[chosen]
    record = {
        "forward_pass_id": 1,
        "rank": rank,
        "gatherer_key": "primary",
        "forward_mode": 1,
        "input_ids": list(range(len(ids[0]))),
        "topk_ids_of_layer": torch.from_numpy(buffer),
        "misc_objects": [{"layer_id": 0, "num_tokens_per_rank": None}],
        "global_physical_count": torch.zeros(4 + dense, EXPERTS + 8, dtype=torch.int32),
        **changes,
    }
    return {"records": [record], "last_physical_to_logical_map": torch.from_numpy(slots)}


def write_sglang(folder: Path, ids: Ids) -> None:
    for rank, rows in enumerate((slice(0, 600), slice(600, None))):
        dump = sglang_dump([chosen[rows] for chosen in ids], rank)
        torch.save(dump, folder / f"expert_distribution_recorder_1.5_{rank}.pt")


def write_vllm(folder: Path, ids: Ids) -> None:
    routed = np.stack(ids, axis=1).astype(np.int16)
    np.save(folder / "request_0.npy", routed[:300])
    np.savez(folder / "requests.npz", a=routed[300:301], b=routed[301:])


def megatron_record(layer: int, chosen: np.ndarray, **changes: Any) -> dict[str, Any]:
    """Ids ascending, as `routing_map.nonzero()` gives them."""
    return {
        "step": 0,
        "stage": "pre_dispatch",
        "block": "decoder",
        "layer": layer,
        "rank": 0,
        "num_tokens": len(chosen),
        "topk": chosen.shape[1],
        "top_indices": np.sort(chosen, axis=1).tolist(),
        **changes,
    }


def write_megatron(folder: Path, ids: Ids) -> None:
    for rank, rows in enumerate((slice(0, 100), slice(100, None))):
        with (folder / f"router_trace_rank{rank}.jsonl").open("w") as file:
            for layer, chosen in enumerate(ids):
                file.write(json.dumps(megatron_record(layer, chosen[rows])) + "\n")
            mtp = megatron_record(0, ids[0][rows], block="mtp", mtp_idx=0)
            file.write(json.dumps(mtp, separators=(",", ":")) + "\n")


def write_trtllm(folder: Path, ids: Ids) -> None:
    (folder / "meta_info.json").write_text(
        json.dumps({"num_experts": EXPERTS, "num_experts_per_token": TOP_K})
    )
    for rank, half in enumerate(np.split(np.arange(len(ids[0])), 2)):
        arrays = {}
        for iteration, rows in enumerate(np.split(half, 2), 100):
            for layer, chosen in enumerate(ids):
                arrays[f"{iteration}_{layer}"] = chosen[rows].astype(np.int32)
        save_file(arrays, folder / f"rank{rank}_raw.safetensors")


def write_npz(folder: Path, ids: Ids) -> None:
    arrays = {f"layers.{n}": chosen.astype(np.uint8) for n, chosen in enumerate(ids)}
    np.savez_compressed(folder / "trace.npz", **arrays)


WRITERS: dict[ImportFormat, Callable[[Path, Ids], None]] = {
    ImportFormat.SGLANG_PER_TOKEN: write_sglang,
    ImportFormat.VLLM_ROUTED: write_vllm,
    ImportFormat.MEGATRON_TRACE: write_megatron,
    ImportFormat.TENSORRT_LLM_RAW: write_trtllm,
    ImportFormat.NPZ: write_npz,
}


TRACES = [format_ for format_ in ImportFormat if format_ is not ImportFormat.C2R_PICKLE]


@pytest.mark.parametrize("format_", TRACES)
def test_every_format_gives_the_profile_of_the_model_itself(
    format_: ImportFormat,
    tmp_path: Path,
    routed: tuple[Ids, CollaborationProfile],
    model: ModelLayers,
) -> None:
    ids, expected = routed
    WRITERS[format_](tmp_path, ids)
    read = import_traces(format_, [tmp_path], model)
    assert read.num_bad == 0
    assert read.profile.provenance["format"] == format_
    assert_same(read.profile, expected)
    for layer in read.profile.layers:
        assert layer.top1 is None and layer.score_mass is None


def assert_same(found: CollaborationProfile, expected: CollaborationProfile) -> None:
    assert [layer.name for layer in found.layers] == [layer.name for layer in expected.layers]
    for a, b in zip(found.layers, expected.layers, strict=True):
        assert (a.num_tokens, a.top_k) == (b.num_tokens, b.top_k)
        assert np.array_equal(a.coactivation, b.coactivation)
        assert np.array_equal(a.load, b.load)
        sets, others = a.routing_sets(), b.routing_sets()
        assert sets is not None and others is not None
        assert np.array_equal(sets[0], others[0]) and np.array_equal(sets[1], others[1])


def test_the_first_id_is_the_top_1_only_if_the_user_says_so(
    tmp_path: Path, routed: tuple[Ids, CollaborationProfile], model: ModelLayers
) -> None:
    ids, expected = routed
    write_npz(tmp_path, ids)
    read = import_traces(ImportFormat.NPZ, [tmp_path], model, is_ordered=True)
    assert read.profile.provenance["is_ordered"] is True
    for a, b in zip(read.profile.layers, expected.layers, strict=True):
        assert np.array_equal(a.top1, b.top1)


def test_dense_layers_are_left_out_with_and_without_a_model(
    tmp_path: Path, routed: tuple[Ids, CollaborationProfile]
) -> None:
    ids, expected = routed
    torch.save(sglang_dump(ids, dense=2), tmp_path / "d.pt")
    routers = {n + 2: layer.name for n, layer in enumerate(expected.layers)}
    model = ModelLayers(num_experts=EXPERTS, routers=routers, num_layers=6)
    named = import_traces(ImportFormat.SGLANG_PER_TOKEN, [tmp_path / "d.pt"], model)
    assert_same(named.profile, expected)
    alone = import_traces(ImportFormat.SGLANG_PER_TOKEN, [tmp_path / "d.pt"])
    assert [layer.name for layer in alone.profile.layers] == [f"layers.{n}" for n in range(2, 6)]


def test_dense_rows_of_zeros(tmp_path: Path, routed: tuple[Ids, CollaborationProfile]) -> None:
    """vLLM's buffer has a row for each layer of the model; dense ones stay 0."""
    ids, expected = routed
    np.save(tmp_path / "r.npy", np.stack([np.zeros_like(ids[0]), *ids], axis=1))
    routers = {n + 1: layer.name for n, layer in enumerate(expected.layers)}
    model = ModelLayers(num_experts=EXPERTS, routers=routers, num_layers=5)
    for known in (model, EXPERTS):
        read = import_traces(ImportFormat.VLLM_ROUTED, [tmp_path / "r.npy"], known)
        assert read.profile.num_layers == 4
    np.save(tmp_path / "moe.npy", np.stack(ids, axis=1))  # rows of MoE layers only
    assert_same(
        import_traces(ImportFormat.VLLM_ROUTED, [tmp_path / "moe.npy"], model).profile, expected
    )


def test_rows_of_zeros_are_padding(
    tmp_path: Path, routed: tuple[Ids, CollaborationProfile]
) -> None:
    """As in a vLLM buffer that is longer than its tokens, or has holes."""
    ids, expected = routed
    tokens = np.stack([np.zeros_like(ids[0]), *ids], axis=1)
    padded = np.insert(tokens, [0, 7, 7, len(tokens)], 0, axis=0)
    np.save(tmp_path / "r.npy", padded)
    read = import_traces(ImportFormat.VLLM_ROUTED, [tmp_path / "r.npy"], EXPERTS)
    assert (read.num_padding, read.num_bad, read.profile.num_layers) == (4, 0, 4)
    assert read.profile.provenance["num_padding"] == 4
    for ours, theirs in zip(read.profile.layers, expected.layers, strict=True):
        assert np.array_equal(ours.load, theirs.load) and ours.num_tokens == len(tokens)


@pytest.mark.parametrize(
    ("dump", "mode"),
    [
        ({"rank": 0, "logical_count": torch.zeros(1, 4, 32)}, "stat"),
        (
            {
                "records": [{"global_physical_count": torch.zeros(4, 32)}],
                "last_physical_to_logical_map": torch.zeros(4, 32, dtype=torch.int64),
            },
            "per_pass",
        ),
    ],
)
def test_sglang_modes_that_hold_loads_only(tmp_path: Path, dump: Any, mode: str) -> None:
    torch.save(dump, tmp_path / "d.pt")
    with pytest.raises(InputError, match=rf"mode {mode}: .*recorder-mode per_token"):
        import_traces(ImportFormat.SGLANG_PER_TOKEN, [tmp_path / "d.pt"])


def test_trtllm_counts_are_refused(tmp_path: Path) -> None:
    save_file({"100_3": np.zeros(32, dtype=np.int64)}, tmp_path / "rank0.safetensors")
    with pytest.raises(InputError, match=r"how often .*_raw\.safetensors"):
        import_traces(ImportFormat.TENSORRT_LLM_RAW, [tmp_path / "rank0.safetensors"], 32)
    with pytest.raises(InputError, match=r"holds no rank\*_raw"):
        import_traces(ImportFormat.TENSORRT_LLM_RAW, [tmp_path], 32)


def test_a_pickle_that_asks_for_more_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"records": [Trap()]}, tmp_path / "d.pt")
    with pytest.raises(InputError, match="nothing else is unpickled"):
        import_traces(ImportFormat.SGLANG_PER_TOKEN, [tmp_path / "d.pt"])
    np.savez(tmp_path / "t.npz", **{"0": np.array([Trap()], dtype=object)})
    with pytest.raises(InputError, match="Python objects"):
        import_traces(ImportFormat.NPZ, [tmp_path / "t.npz"], 32)
    assert not (tmp_path / "sprung").exists()


def test_a_map_that_disagrees_with_the_model(
    tmp_path: Path, routed: tuple[Ids, CollaborationProfile], model: ModelLayers
) -> None:
    dump = sglang_dump(routed[0])
    torch.save(dump, tmp_path / "d.pt")
    other = ModelLayers(num_experts=64, routers=model.routers, num_layers=4)
    with pytest.raises(InputError, match="32 experts, not 64"):
        import_traces(ImportFormat.SGLANG_PER_TOKEN, [tmp_path / "d.pt"], other)
    longer = ModelLayers(num_experts=32, routers=model.routers, num_layers=6)
    torch.save(sglang_dump(routed[0], dense=1), tmp_path / "l.pt")
    with pytest.raises(InputError, match="counts 5 layers, the model has 6"):
        import_traces(ImportFormat.SGLANG_PER_TOKEN, [tmp_path / "l.pt"], longer)
    dump["last_physical_to_logical_map"][dump["last_physical_to_logical_map"] == 5] = 6
    torch.save(dump, tmp_path / "d.pt")
    with pytest.raises(InputError, match="no slot for expert 5"):
        import_traces(ImportFormat.SGLANG_PER_TOKEN, [tmp_path / "d.pt"])


def test_a_slot_that_the_map_does_not_have(
    tmp_path: Path, routed: tuple[Ids, CollaborationProfile]
) -> None:
    dump = sglang_dump(routed[0])
    dump["records"][0]["topk_ids_of_layer"][2, 5, 1] = 40
    torch.save(dump, tmp_path / "d.pt")
    with pytest.raises(
        InputError, match=r"record 0: slot 40 in layer 2.* 40 slots; is_skipping_bad=True"
    ):
        import_traces(ImportFormat.SGLANG_PER_TOKEN, [tmp_path / "d.pt"])


BAD_LINES = {
    "not json": '{"step": 0',
    "cut off": json.dumps(megatron_record(0, np.array([[0, 1]])))[:-20],
    "no ids": json.dumps({"layer": 0, "num_tokens": 1, "topk": 2}),
    "too few": json.dumps(megatron_record(0, np.array([[0, 1]]), num_tokens=2)),
    "other rows": json.dumps(megatron_record(0, np.array([[0], [1]]), num_tokens=1, topk=2)),
    "no such expert": json.dumps(megatron_record(0, np.array([[0, 32]]))),
    "twice": json.dumps(megatron_record(0, np.array([[3, 3]]))),
    "other k": json.dumps(megatron_record(0, np.array([[0, 1, 2]]))),
    "no lists": json.dumps(megatron_record(0, np.array([[0, 1]]), top_indices=[0, 1])),
    "no integers": json.dumps(megatron_record(0, np.array([[0, 1]]), top_indices=[[0, 1.5]])),
    "nothing": json.dumps({**megatron_record(0, np.array([[0, 1]])), "top_indices": None}),
    "no number": json.dumps(megatron_record(0, np.array([[0, 1]]), num_tokens=None)),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_and_skipped_only_on_request(kind: str, tmp_path: Path) -> None:
    good = json.dumps(megatron_record(0, np.array([[0, 1], [1, 2]])))
    path = tmp_path / "router_trace_rank0.jsonl"
    path.write_text(f"{good}\n{BAD_LINES[kind]}\n\n{good}\n")
    with pytest.raises(InputError, match=r"rank0\.jsonl, line 2: .*is_skipping_bad=True"):
        import_traces(ImportFormat.MEGATRON_TRACE, [path], 32)
    read = import_traces(ImportFormat.MEGATRON_TRACE, [path], 32, is_skipping_bad=True)
    assert read.num_bad == 1 and "line 2" in read.first_bad
    assert read.profile.num_tokens == 4
    assert read.profile.provenance["num_bad_records"] == 1
    assert read.profile.layers[0].load[:4].tolist() == [2, 4, 2, 0]


def test_padding_inside_a_batch() -> None:
    from c2r.adapters.engines.records import Record, expert_ids

    ids = np.array([[3, 1, -1], [-1, -1, -1], [2, -1, 0]])
    assert expert_ids(Record("x", 0, ids)).tolist() == [[3, 1], [2, 0]]
    slots = np.array([7, 6, 5, 4])
    assert expert_ids(Record("x", 0, ids, slots)).tolist() == [[4, 6], [5, 7]]
    with pytest.raises(ValueError, match="with 1 and with 2 experts"):
        expert_ids(Record("x", 0, np.array([[0, 1], [2, -1]])))
    with pytest.raises(ValueError, match=r"not \[tokens, k"):
        expert_ids(Record("x", 0, np.array([0.5])))


def test_files_that_cannot_be_read(tmp_path: Path, model: ModelLayers) -> None:
    np.savez(tmp_path / "t.npz", layer_0=np.array([[0, 1]]), other=np.array([[0, 1]]))
    with pytest.raises(InputError, match="other: no number in its name"):
        import_traces(ImportFormat.NPZ, [tmp_path / "t.npz"], 32)
    with pytest.raises(
        InputError, match="does not say how many experts a layer has, and model=None"
    ):
        import_traces(ImportFormat.NPZ, [tmp_path / "t.npz"])
    with pytest.raises(InputError, match="no tokens of 3 of the model's 4 MoE layers"):
        import_traces(ImportFormat.NPZ, [tmp_path / "t.npz"], model, is_skipping_bad=True)
    np.savez(tmp_path / "t.npz", layer_7=np.array([[0, 1]]))
    with pytest.raises(InputError, match="names layer 7; the model's MoE layers are 0 to 3"):
        import_traces(ImportFormat.NPZ, [tmp_path / "t.npz"], model)
    content = (tmp_path / "t.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(content[: len(content) // 2])
    for format_ in ImportFormat:
        for path in (tmp_path / "t.npz", tmp_path / "nowhere"):
            with pytest.raises(InputError):
                import_traces(format_, [path], 32, top_k=2)
    np.save(tmp_path / "t.npy", np.zeros((9, 4, 2), dtype=np.int64))
    content = (tmp_path / "t.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(content[:-100])
    with pytest.raises(InputError, match="ends within row 7"):
        import_traces(ImportFormat.VLLM_ROUTED, [tmp_path / "t.npy"], 32)


@pytest.mark.parametrize("format_", TRACES)
def test_shares_of_a_trace_hold_each_of_its_rows_once(
    format_: ImportFormat,
    tmp_path: Path,
    routed: tuple[Ids, CollaborationProfile],
    model: ModelLayers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shares so small that most begin within a file, an array or a line."""
    ids, expected = routed
    WRITERS[format_](tmp_path, ids)
    monkeypatch.setattr(shares, "_SHARE_BYTES", 997)
    told: list[tuple[int, int, int]] = []
    read = import_traces(format_, [tmp_path], model, on_share=lambda *now: told.append(now))
    assert_same(read.profile, expected)
    traces = [path for path in tmp_path.iterdir() if path.suffix != ".json"]
    assert len(told) >= 4 and told == sorted(told)
    total = sum(map(size, traces))
    assert told[-1] == (total, total, NUM_LAYERS * len(ids[0]))


def test_two_workers_count_what_one_counts(
    tmp_path: Path,
    routed: tuple[Ids, CollaborationProfile],
    model: ModelLayers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with pipeline parallelism, one file holds only some layers."""
    ids, expected = routed
    np.savez(tmp_path / "a.npz", **{f"{n}": ids[n][:500] for n in range(4)})
    np.savez(tmp_path / "b.npz", **{f"{n}": ids[n][500:] for n in range(2)})
    np.savez(tmp_path / "c.npz", **{f"{n}": ids[n][500:] for n in range(2, 4)}, x=ids[0])
    monkeypatch.setattr(shares, "_SHARE_BYTES", sum(map(size, tmp_path.iterdir())) // 3)
    for num_workers in (1, 2):
        read = import_traces(
            ImportFormat.NPZ, [tmp_path], model, is_skipping_bad=True, num_workers=num_workers
        )
        assert_same(read.profile, expected)
        assert read.num_bad == 1 and "c.npz, x" in read.first_bad
        assert read.num_workers == num_workers


def test_a_sample_of_the_sets_is_the_same_with_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    ids = np.argsort(rng.random((200_000, 40)), axis=1)[:, :6].astype(np.int16)
    np.save(tmp_path / "t.npy", ids[:, None])
    monkeypatch.setattr(shares, "_SHARE_BYTES", 600_000)
    one, two = (
        import_traces(ImportFormat.VLLM_ROUTED, [tmp_path], 40, num_workers=n).profile.layers[0]
        for n in (1, 2)
    )
    assert one.sets is not None and two.sets is not None and not one.sets.is_exact
    assert one.num_tokens == 200_000 and np.array_equal(one.sets.experts, two.sets.experts)


def test_files_of_different_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", **{"0": np.array([[0, 1]])})
    np.savez(tmp_path / "b.npz", **{"0": np.array([[0, 1, 2]])})
    with pytest.raises(InputError, match="3 experts per token in layer 0, 2 before"):
        import_traces(ImportFormat.NPZ, [tmp_path], 32)
    monkeypatch.setattr(shares, "_SHARE_BYTES", size(tmp_path / "a.npz"))
    with pytest.raises(InputError, match="files disagree on layer 0"):
        import_traces(ImportFormat.NPZ, [tmp_path], 32)


def size(path: Path) -> int:
    return path.stat().st_size


def test_large_arrays_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from c2r.adapters.engines import arrays

    ids = np.argsort(np.random.default_rng(0).random((5_000, 32)), axis=1)[:, :4].astype(np.int16)
    np.savez(tmp_path / "t.npz", **{"0": ids})
    whole = import_traces(ImportFormat.NPZ, [tmp_path / "t.npz"], 32).profile
    monkeypatch.setattr(arrays, "_BLOCK_BYTES", 1_000)
    blocks = [block for _, block in arrays.read_array_blocks(tmp_path / "t.npz")]
    assert max(len(block) for block in blocks) == 125
    assert np.array_equal(np.concatenate(blocks), ids)
    in_blocks = import_traces(ImportFormat.NPZ, [tmp_path / "t.npz"], 32).profile
    assert np.array_equal(whole.layers[0].coactivation, in_blocks.layers[0].coactivation)
