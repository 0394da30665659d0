"""The sizes of a model's layers, read from its config; nothing is loaded."""

from collections.abc import Mapping
from typing import Any

from c2r.errors import ModelError
from c2r.prediction.workload import ModelSizes

# The families' names for one thing, the most particular first.
_EXPERT_SIZE = ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_dim", "intermediate_size")
_NUM_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_SHARED_SIZE = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
_NUM_SHARED = ("n_shared_experts", "num_shared_experts", "num_shared_expert")
_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")


def sizes_of(config: Any, num_moe_layers: int | None = None) -> ModelSizes:
    """The sizes that a transformers config, or its JSON, tells.

    Args:
        config: of the model; a text model inside a multi-modal one is found.
        num_moe_layers: layers with routed experts where that is known; else counted from the
            config: all but the dense first ones.

    Raises:
        ModelError: the config lacks a size; it is named.
    """
    values = _text_config(config)
    hidden = _first(values, ("hidden_size", "d_model", "n_embd"), "hidden_size")
    expert = _first(values, _EXPERT_SIZE, "moe_intermediate_size")
    layers = _first(values, ("num_hidden_layers", "n_layers", "n_layer"), "num_hidden_layers")
    dense_first = _known(values, _DENSE_FIRST) or 0
    moe_layers = layers - dense_first if num_moe_layers is None else num_moe_layers
    shared = _known(values, _SHARED_SIZE)
    if shared is None:
        shared = (_known(values, _NUM_SHARED) or 0) * expert
    return ModelSizes(
        hidden_size=hidden,
        expert_size=expert,
        shared_expert_size=shared,
        num_layers=layers,
        num_moe_layers=moe_layers,
        dense_parameters=_dense_parameters(values, hidden, layers, layers - moe_layers),
    )


def _dense_parameters(values: Mapping[str, Any], hidden: int, layers: int, dense: int) -> int:
    """Attention of all layers, the feed-forward of dense ones, and the head."""
    heads = _known(values, ("num_attention_heads", "n_heads", "n_head")) or 1
    head = _known(values, ("head_dim",)) or hidden // heads
    groups = _known(values, ("num_key_value_heads",)) or heads
    attention = 2 * hidden * heads * head + 2 * hidden * groups * head
    latent = _known(values, ("kv_lora_rank",))
    if latent:
        attention = _latent_attention(values, hidden, heads, latent)
    feed_forward = 3 * hidden * (_known(values, ("intermediate_size",)) or 0)
    vocabulary = _known(values, ("vocab_size",)) or 0
    return layers * attention + dense * feed_forward + vocabulary * hidden


def _latent_attention(values: Mapping[str, Any], hidden: int, heads: int, latent: int) -> int:
    """DeepSeek's attention: queries and keys with values through narrow layers."""
    rotated = _known(values, ("qk_rope_head_dim",)) or 0
    plain = _known(values, ("qk_nope_head_dim",)) or 0
    value = _known(values, ("v_head_dim",)) or plain
    query = _known(values, ("q_lora_rank",))
    wide = heads * (plain + rotated)
    queries = hidden * wide if not query else query * (hidden + wide)
    keys = hidden * (latent + rotated) + latent * heads * (plain + value)
    return queries + keys + heads * value * hidden


def _text_config(config: Any) -> Mapping[str, Any]:
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    if _known(values, _NUM_EXPERTS) is None:
        for name in ("text_config", "llm_config", "language_config", "thinker_config"):
            inner = values.get(name)
            if isinstance(inner, Mapping):
                return _text_config(inner)
    return values


def _known(values: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of these that is a number; where layers differ, the largest."""
    for name in names:
        value = values.get(name)
        if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
            return int(max(value))
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _first(values: Mapping[str, Any], names: tuple[str, ...], what: str) -> int:
    found = _known(values, names)
    if found is None or found < 1:
        kind = values.get("model_type", "this model")
        raise ModelError(f"the config of {kind} lacks {what}; give it (model_sizes)")
    return found
