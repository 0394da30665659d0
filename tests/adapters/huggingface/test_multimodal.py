"""Multi-modal models: of the class that config.json names, on all that a batch holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

import c2r
from c2r.adapters.huggingface import apply, find_sites, load_model, profile, save_pretrained
from c2r.adapters.huggingface.folders import skeleton_of
from c2r.errors import InputError
from c2r.measuring import measure
from tests.adapters.huggingface.checks import small_plan
from tests.adapters.huggingface.families import MLA, SIZES
from tests.adapters.huggingface.independent import counting

IMAGE, VIDEO = 90, 200  # the id that stands for a video has no embedding
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
IDS = torch.tensor([[5, 6, 92, 90, 90, 90, 90, 93, 7, 8, 9, 10], [11, 92, *[90] * 4, 93, *[7] * 5]])
PIXELS = {
    "pixel_values": torch.randn(32, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(3)),
    "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
    "mm_token_type_ids": (IDS == IMAGE).long(),
}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    text = {name: value for name, value in SIZES.items() if name not in ("layer_types", *MLA)}
    text |= {"num_experts": 8, "num_experts_per_tok": 3, "head_dim": 8, "num_key_value_heads": 2}
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLMoeConfig(
        text_config={**text, "num_local_experts": 8, "rope_parameters": ROPE},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    made = Qwen3VLMoeForConditionalGeneration(config)
    for layer in made.model.language_model.layers:
        torch.nn.init.normal_(layer.mlp.gate.weight, std=0.3)
    return made.eval()


@pytest.mark.parametrize("entries", [PIXELS, {}], ids=["with images", "text alone"])
@pytest.mark.parametrize("mask", [None, (torch.arange(12) < torch.tensor([[12], [9]])).long()])
def test_figures_are_of_all_that_a_batch_holds(model: Any, entries: Any, mask: Any) -> None:
    ids = IDS if entries else IDS.masked_fill(IDS == IMAGE, 4)
    batch = {"input_ids": ids, **entries} | ({} if mask is None else {"attention_mask": mask})
    with counting(model, 8, 3) as loads, torch.no_grad():
        logits = model(**batch, use_cache=False).logits
    kept = torch.ones_like(ids) if mask is None else mask
    targets = ids[:, 1:].masked_fill(kept[:, 1:] == 0, -100)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
    found = profile(model, [batch])
    assert found.num_tokens == int(kept.sum())
    if mask is None:
        assert np.array_equal([layer.load for layer in found.layers], list(loads.values()))
    measured = measure(model, [batch])
    assert measured.loss == pytest.approx(float(loss), rel=1e-5)


def test_images_count(model: Any) -> None:
    other = {**PIXELS, "pixel_values": PIXELS["pixel_values"].flip(0)}
    one, two = (profile(model, [{"input_ids": IDS, **given}]) for given in (PIXELS, other))
    assert any((a.load != b.load).any() for a, b in zip(one.layers, two.layers, strict=True))


def test_an_id_that_stands_for_another_sense_needs_no_embedding(model: Any) -> None:
    ids = IDS[:, -5:].clone()
    ids[0, 0] = 150
    with pytest.raises(InputError, match="token id 150 is beyond"):
        profile(model, ids)
    from c2r.adapters.huggingface import read_batch

    ids[0, 0] = VIDEO
    assert int(read_batch(model, ids)["input_ids"].max()) == VIDEO


def test_saved_and_loaded_by_the_class_that_its_config_names(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is type(skeleton_of(tmp_path / "model")) is type(model)
    apply(loaded, small_plan(find_sites(loaded)))
    save_pretrained(loaded, tmp_path / "constrained")
    again = c2r.from_pretrained(tmp_path / "constrained")
    batch = {"input_ids": IDS, **PIXELS}
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, loaded(**batch).logits)
        assert not torch.equal(again(**batch).logits, model(**batch).logits)
