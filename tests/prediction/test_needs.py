"""What commands take of many devices: by hand for one case, and the table of the docs."""

import math
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from c2r.adapters.huggingface.sizes import read_shape
from c2r.prediction.cluster import default_cluster
from c2r.prediction.needs import command_needs
from c2r.profiling import draw_profile

PAGE = Path(__file__).parents[2] / "docs/how-to/needs.md"
QWEN = {"num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "head_dim": 128}
QWEN |= {"num_key_value_heads": 4, "architectures": ["Qwen3MoeForCausalLM"]}
CONFIGS = {
    "Qwen3-30B-A3B": CONFIG_MAPPING["qwen3_moe"](
        hidden_size=2048, moe_intermediate_size=768, num_hidden_layers=48,
        num_attention_heads=32, **QWEN
    ),
    "Qwen3-235B-A22B": CONFIG_MAPPING["qwen3_moe"](
        hidden_size=4096, moe_intermediate_size=1536, num_hidden_layers=94,
        num_attention_heads=64, **QWEN
    ),
    "DeepSeek-V3": CONFIG_MAPPING["deepseek_v3"](architectures=["DeepseekV3ForCausalLM"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    found = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        config.save_pretrained(folder)
        found[name] = read_shape(folder)
    return found


def test_the_parameters_are_those_that_the_models_are_named_for(shapes):
    billions = [shape.parameters / 1e9 for shape in shapes.values()]
    assert billions == pytest.approx([30.5, 235.1, 671.0], abs=0.05)


def needs_of(shape, num_ranks):
    routing = draw_profile(shape.num_experts, shape.top_k, 0.5)
    cluster = default_cluster(num_ranks, num_ranks // 8)
    return {need.command: need for need in command_needs(shape, routing, cluster, 4096)}


def test_memory_by_hand(shapes):
    needs = needs_of(shapes["Qwen3-30B-A3B"], 8)
    parameters, head = shapes["Qwen3-30B-A3B"].parameters, 151936 * 2048
    assert needs["profile"].weights == pytest.approx(parameters * 2 / 8 / 1e9)
    assert needs["finetune"].weights == pytest.approx(8 * needs["profile"].weights)
    assert needs["profile"].gathered == pytest.approx(2 * head * 2 / 1e9)  # larger than a layer
    layer = 4096 * 2 * (10 * 2048 + 8 * (2 * 2048 + 3 * 768))
    logits = 4096 * 151936 * 2
    assert needs["profile"].activations == pytest.approx((layer + logits) / 1e9)
    assert needs["sweep"].activations == pytest.approx((layer + 2 * logits) / 1e9)
    assert needs["profile"].steps == math.ceil(204800 / 8 / 4096)
    assert all(need.fits for need in needs.values())


def test_weights_that_fill_more_than_they_may_do_not_fit(shapes):
    """68.8 GB of 80: there is room for them, but not for what else there is."""
    needs = needs_of(shapes["DeepSeek-V3"], 16)
    assert needs["profile"].memory > 80 and not needs["profile"].fits
    needs = needs_of(shapes["Qwen3-235B-A22B"], 56)
    assert 64 < needs["finetune"].weights < 80 and not needs["finetune"].fits


def test_more_devices_take_less_time_and_memory(shapes):
    for shape in shapes.values():
        few, many = needs_of(shape, 8), needs_of(shape, 64)
        for command in few:
            assert many[command].weights == pytest.approx(few[command].weights / 8)
            assert many[command].seconds < few[command].seconds


def row(name, num_ranks, needs):
    cells = [
        f"{need.memory:,.0f} GB, {duration(need.seconds)}" if need.fits else "no"
        for need in needs.values()
    ]
    return f"| {name} | {num_ranks} | {' | '.join(cells)} |"


def duration(seconds):
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def test_the_table_of_the_docs(shapes):
    rows = [
        row(name, num_ranks, needs_of(shape, num_ranks))
        for name, shape in shapes.items()
        for num_ranks in (8, 64, 512)
    ]
    assert "\n".join(rows) in PAGE.read_text(), "\n" + "\n".join(rows)
