"""The sizes of every family's models are those of their parameters."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from c2r.adapters.huggingface.sizes import count_sizes, read_sizes, sizes_of
from c2r.assets import tiny_folder
from c2r.errors import InputError, ModelError
from tests.adapters.huggingface.families import FAMILIES


def parameters_of(model):
    """All but the embedding, unless it is the head too, and the biases of routed experts."""
    head = model.get_output_embeddings()
    table = model.get_input_embeddings().weight
    tied = head is not None and head.weight is table
    biases = sum(
        value.numel()
        for name, value in model.named_parameters()
        if name.endswith("_bias") and ".experts." in name
    )
    total = sum(value.numel() for value in model.parameters())
    return total - biases - (0 if tied else table.numel())


# Of LongCat's zero experts a matrix is kept that is never used; Gemma looks up a row per layer.
UNUSED = {"longcat_flash": 4 * 4096 * 32 * 2, "gemma4_text": 96 * 2 * 256}


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_sizes_add_up_to_the_parameters(family):
    model = family.model()
    sizes = sizes_of(model, family.num_experts)
    layer = sizes.shared_parameters + family.num_experts * sizes.expert_parameters
    found = sizes.dense_parameters + sizes.num_moe_layers * layer
    wanted = parameters_of(model) - UNUSED.get(family.name, 0)
    assert found == pytest.approx(wanted, rel=0.02)
    assert sizes.hidden_size == 32


def test_sizes_by_hand():
    by_name = {family.name: family for family in FAMILIES}
    mixtral = sizes_of(by_name["mixtral"].model(), 8)
    assert (mixtral.expert_size, mixtral.num_matrices, mixtral.num_moe_layers) == (48, 3, 2)
    dbrx = sizes_of(by_name["dbrx"].model(), 8)
    assert (dbrx.expert_size, dbrx.num_matrices) == (16, 3)
    nemotron = sizes_of(by_name["nemotron_h"].model(), 8)
    assert (nemotron.expert_size, nemotron.num_matrices) == (16, 2)
    assert (nemotron.shared_expert_size, nemotron.num_layers, nemotron.num_moe_layers) == (16, 4, 2)
    # Experts half as wide as the model, between two matrices: as many parameters as 8 would have.
    assert sizes_of(by_name["muse_spark_text"].model(), 8).expert_parameters == 3 * 16 * 16


def test_released_sizes():
    """Qwen3-30B-A3B: 30.5 billion parameters, 3.3 of them active, 0.3 in its embedding."""
    config = CONFIG_MAPPING["qwen3_moe"](
        hidden_size=2048, moe_intermediate_size=768, num_hidden_layers=48, num_experts=128,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, vocab_size=151936,
    )  # fmt: skip
    with torch.device("meta"):
        sizes = count_sizes(AutoModelForCausalLM.from_config(config), 128)
    assert (sizes.hidden_size, sizes.expert_size, sizes.num_moe_layers) == (2048, 768, 48)
    experts = 48 * 128 * sizes.expert_parameters
    assert experts + sizes.dense_parameters == pytest.approx(30.5e9 - 0.31e9, rel=0.005)
    assert 48 * 8 * sizes.expert_parameters + sizes.dense_parameters == pytest.approx(
        3.3e9 - 0.31e9, rel=0.03
    )


def test_the_configuration_is_enough(tmp_path):
    assert read_sizes(tiny_folder()).hidden_size > 0
    config = CONFIG_MAPPING["llama"](hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no routers"):
        read_sizes(tmp_path)
    with pytest.raises(InputError):
        read_sizes(tmp_path / "nothing")


def test_packed_and_wrapped_models_have_the_sizes_of_the_plain_one():
    model = next(family for family in FAMILIES if family.name == "qwen2_moe").model()
    plain = sizes_of(model, 8)
    half = nn.Sequential(model)
    model.lm_head.weight = nn.Parameter(torch.zeros(1))  # as packed weights have other shapes
    assert sizes_of(half, 8) == plain


def test_a_model_of_no_library_has_no_sizes():
    with pytest.raises(ModelError, match="Linear is no model of transformers"):
        sizes_of(nn.Linear(2, 2), 8)
