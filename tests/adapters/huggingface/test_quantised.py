"""Quantised checkpoints: run as transformers loads them, or refused by the name of their method."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from c2r.adapters.huggingface import apply, find_sites, load_model, profile
from c2r.errors import ModelError
from c2r.measuring import measure
from tests.adapters.huggingface.checks import small_plan, token_ids
from tests.adapters.huggingface.families import FAMILIES, Family
from tests.adapters.huggingface.independent import loads_of_rows, loss_of_rows

BY_NAME = {family.name: family for family in FAMILIES}
IDS = token_ids()
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
BLOCK = 16


def fp8(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed `[o, i]`, inverse scales of its blocks, and what they stand for."""
    blocks = value.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).float()  # [O, b, I, b]
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    packed = (blocks / scales).to(torch.float8_e4m3fn)
    meant = (packed.float() * scales).flatten(0, 1).flatten(1, 2)
    return packed.flatten(0, 1).flatten(1, 2), scales[:, 0, :, 0], meant


def mxfp4(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed `[..., G, 16]`, exponents `[..., G]` of 32 values each, and what they stand for."""
    groups = value.float().unflatten(-1, (-1, 32))
    exponents = (groups.abs().amax(-1) / 6).log2().ceil().clamp(-127, 127)
    scaled = groups / exponents.exp2()[..., None]
    codes = (scaled[..., None] - FP4).abs().argmin(-1)
    meant = (FP4[codes] * exponents.exp2()[..., None]).flatten(-2)
    packed = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
    return packed, (exponents + 127).to(torch.uint8), meant


def write(folder: Path, family: Family, settings: dict[str, Any]) -> Any:
    """Writes a quantised checkpoint; gives the model of what its weights stand for."""
    model = family.model("eager").to(torch.bfloat16)
    model.save_pretrained(folder)
    weights, meant = load_file(folder / "model.safetensors"), {}
    for name, value in list(weights.items()):
        if settings["quant_method"] == "fp8" and "proj" in name and value.ndim == 2:
            packed, scales, meant[name] = fp8(value)
            weights |= {name: packed, f"{name}_scale_inv": scales}
        if settings["quant_method"] == "mxfp4" and name.endswith("_proj"):
            packed, scales, transposed = mxfp4(weights.pop(name).mT)
            weights |= {f"{name}_blocks": packed, f"{name}_scales": scales}
            meant[name] = transposed.mT
    save_file({n: v.contiguous() for n, v in weights.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    plain = folder / "plain"
    model.save_pretrained(plain)
    whole = load_file(plain / "model.safetensors")
    whole |= {name: value.to(torch.bfloat16).contiguous() for name, value in meant.items()}
    save_file(whole, plain / "model.safetensors", metadata={"format": "pt"})
    assert meant
    return load_model(plain, attn_implementation="eager")


PACKED = {
    "fp8": (BY_NAME["qwen3_moe"], {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}),
    "mxfp4": (
        replace(BY_NAME["gpt_oss"], options={"intermediate_size": 64}),
        {"quant_method": "mxfp4"},
    ),
}


@pytest.mark.parametrize("method", PACKED)
def test_figures_are_those_of_what_the_weights_stand_for(method: str, tmp_path: Path) -> None:
    family, settings = PACKED[method]
    reference = write(tmp_path, family, settings)
    model = load_model(tmp_path, attn_implementation="eager")
    plan = small_plan(find_sites(model))
    router = "router" if method == "mxfp4" else "gate"
    expected = loads_of_rows(reference, IDS.tolist(), router=router)
    found = profile(model, [{"input_ids": row} for row in IDS])
    assert np.array_equal([layer.load for layer in found.layers], expected)
    apply(reference, plan)
    measured = measure(model, IDS, plan)
    assert measured.loss == pytest.approx(loss_of_rows(reference, IDS.tolist()), rel=2e-3)


@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "gptq", "compressed-tensors"])
def test_a_method_that_cannot_be_had_is_named_with_what_it_needs(
    method: str, tmp_path: Path
) -> None:
    BY_NAME["mixtral"].model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    settings = {"quant_method": method, "load_in_4bit": True, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(ModelError, match=rf"\(quantised, {method}\).*; install what it names, or"):
        load_model(tmp_path)
