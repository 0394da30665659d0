"""Tiny random models of every family that the adapter supports."""

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

IS_OLD = Version(transformers.__version__) < Version("5.23")  # as `scripts/versions` installs
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 0,
    "num_dense_layers": 0,
    "n_shared_experts": 1,
    "mlp_layer_types": ["sparse", "sparse"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_intermediate_size": 16,
}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
INDEXER = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 16}
EVERY_LAYER = {"expert_layer_period": 1, "expert_layer_offset": 0}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
GROUPS = {"n_group": 4, "topk_group": 2}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One configuration: `name` is unique, `model_type` is transformers' own."""

    name: str
    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    num_experts: int = 8
    top_k: int = 3
    experts: tuple[str, ...] = ("eager", "grouped_mm")
    is_grouped: bool = False

    def config(self) -> Any:
        # Before 5.23 jamba's router is a part of its experts, and found under another name.
        if IS_OLD and (self.model_type not in CONFIG_MAPPING or self.model_type == "jamba"):
            pytest.skip(f"transformers {transformers.__version__} has no such {self.model_type}")
        config_class = CONFIG_MAPPING[self.model_type]
        known = set(config_class().to_dict())
        names = {**SIZES, **_count_options(self, getattr(config_class, "attribute_map", {}))}
        options = {name: value for name, value in names.items() if name in known}
        return config_class(**{**options, **self.options})

    def model(self, experts: str | None = None) -> Any:
        torch.manual_seed(0)
        config = self.config()
        auto = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
        model = auto.from_config(
            config, attn_implementation="eager", experts_implementation=experts
        )
        _randomise(model)
        return model.eval()


def _count_options(family: Family, aliases: dict[str, str]) -> dict[str, Any]:
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    per_token = (
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_topk",
        "moe_k",
        "top_k_experts",
    )
    return {
        **{name: family.num_experts for name in experts if name not in aliases},
        **{name: family.top_k for name in per_token if name not in aliases},
    }


def _randomise(model: Any) -> None:
    """Random router weights and correction biases: released ones are not zero."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith(("correction_bias", "expert_bias")):
            tensor.data.copy_(noise.abs() * 0.1)
        elif re.search(r"router|gate\.", name) and tensor.ndim == 2 and "experts" not in name:
            tensor.data.copy_(noise * 0.3)


def _family(name: str, model_type: str | None = None, **rest: Any) -> Family:
    fields = {key: rest.pop(key) for key in ("num_experts", "top_k", "experts") if key in rest}
    return Family(
        name=name,
        model_type=model_type or name,
        options=rest,
        is_grouped=rest.get("n_group", 1) not in (None, 1),
        **fields,
    )


EAGER = ("eager",)
FAMILIES = (
    _family("mixtral"),
    _family("minimax", layer_types=["full_attention", "linear_attention"], block_size=16),
    _family("qwen2_moe"),
    _family("qwen3_moe"),
    _family("qwen3_next"),
    _family("qwen3_5_moe_text"),
    _family("qwen3_vl_moe_text"),
    _family("olmoe"),
    _family("flex_olmo"),
    _family("mellum"),
    _family("jamba", attn_layer_offset=1, attn_layer_period=2, **EVERY_LAYER),
    _family("hunyuan_v1_moe"),
    _family("hunyuan_v1_moe (per layer)", "hunyuan_v1_moe", moe_topk=[2, 4]),
    _family(
        "dbrx",
        experts=EAGER,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=128,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 3},
    ),
    _family("gemma4_text", enable_moe_block=True, global_head_dim=8, vocab_size_per_layer_input=96),
    _family("deepseek_v2", **MLA),
    _family(
        "deepseek_v2 (groups)",
        "deepseek_v2",
        **MLA,
        **GROUPS,
        topk_method="group_limited_greedy",
    ),
    _family(
        "mistral4",
        **MLA,
        **GROUPS,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 128,
        },
    ),
    _family("mistral_large4_text", **MLA, **GROUPS),
    _family("longcat_flash", **MLA, experts=EAGER, zero_expert_num=4, num_hidden_layers=4),
    _family("ernie4_5_moe", moe_layer_start_index=0),
    _family("zaya", top_k=1),
    _family("gpt_oss"),
    _family("openai_privacy_filter"),
    _family("aria_text"),
    _family("granitemoe"),
    _family("granitemoeshared"),
    _family(
        "granitemoehybrid",
        mamba_n_heads=4,
        mamba_d_state=16,
        mamba_chunk_size=16,
        layer_types=["mamba", "attention"],
    ),
    _family("granitemoe_swa"),
    _family("jetmoe", experts=EAGER, kv_channels=8),
    _family("cohere2_moe"),
    _family("llama4_text", experts=EAGER),
    _family("phimoe", top_k=2, router_jitter_noise=0.4),
    _family("deepseek_v3", **MLA, **ONE_GROUP),
    _family("deepseek_v3 (groups)", "deepseek_v3", **MLA, **GROUPS),
    _family("deepseek_v32", **MLA, **INDEXER, **GROUPS),
    _family("dots1"),
    _family("glm4_moe", **GROUPS),
    _family("glm4_moe_lite", **MLA),
    _family("glm_moe_dsa", **MLA, **INDEXER),
    _family(
        "glm5_next_text",
        **{**MLA, **INDEXER, "qk_rope_head_dim": 0, "head_dim": 0},
        linear_head_dim=8,
        linear_num_heads=4,
        indexer_types=["full", "full"],
    ),
    _family("exaone_moe"),
    _family("solar_open"),
    _family("hy_v4", **MLA, **INDEXER),
    _family("axk1", **MLA, **GROUPS),
    _family("axk2", **MLA, **GROUPS),
    _family("mimo_v2_flash"),
    _family(
        "nemotron_h",
        layers_block_type=["mamba", "moe", "attention", "moe"],
        moe_shared_expert_intermediate_size=16,
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=16,
        n_groups=2,
        chunk_size=16,
    ),
    _family("beam", **GROUPS),
    _family("minimax_m2"),
    _family("minimax_m3_vl_text"),
    _family("hy_v3"),
    _family("lfm2_moe", layer_types=["conv", "full_attention"]),
    _family("afmoe"),
    _family("laguna"),
    _family("kolibri1"),
    _family("flint", mlp_only_layers=[]),
    _family("muse_spark_text", moe_hidden_size=16),
    _family(
        "inkling2_text",
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=8,
        unpadded_vocab_size=96,
        rel_extent=32,
    ),
    _family("deepseek_v4", mlp_layer_types=["hash_moe", "moe"], **INDEXER, o_groups=2),
)
