"""Tiny random models of the families that engines serve; head sizes that CPU attention takes."""

from typing import Any

import torch
import transformers

_COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_DEEPSEEK = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "n_group": 4,
    "topk_group": 2,
    "kv_lora_rank": 512,  # with the rotated part 576 values, all that vLLM takes on a CPU
    "q_lora_rank": 64,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 16, "num_experts_per_tok": 4}),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 32,
            "head_dim": 32,
            "norm_topk_prob": True,
        },
    ),
    "olmoe": ("Olmoe", {"num_experts": 16, "num_experts_per_tok": 4}),
    "deepseek_v2": ("DeepseekV2", {**_DEEPSEEK, "topk_method": "group_limited_greedy"}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_DEEPSEEK,
            "routed_scaling_factor": 2.5,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
        },
    ),
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": 16, "num_experts_per_tok": 4, "head_dim": 32, "sliding_window": 128},
    ),
    "glm4_moe": (
        "Glm4Moe",
        {
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
            "first_k_dense_replace": 0,
            "head_dim": 32,
        },
    ),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 16, "num_experts_per_tok": 4}),
}
NAMES = tuple(_FAMILIES)


def make(name: str) -> Any:
    """A model of the family with routers that tell experts apart, the same at every call."""
    prefix, sizes = _FAMILIES[name]
    config = getattr(transformers, f"{prefix}Config")(**{**_COMMON, **sizes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for path, values in (*model.named_parameters(), *model.named_buffers()):
            if path.endswith(("gate.weight", "router.weight", "router.layer.weight")):
                values.normal_(std=0.5)
            elif path.endswith("e_score_correction_bias"):
                values.normal_(std=0.1)
            elif prefix.startswith("Deepseek") and path.endswith("o_proj.weight"):
                # Without a plan, too, vLLM 0.32's attention for it differs from transformers 5.23's
                # by up to 4e-3 in log-probability: left out, what is compared is the routing.
                values.zero_()
    return model
