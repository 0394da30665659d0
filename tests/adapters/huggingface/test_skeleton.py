from pathlib import Path

import pytest

from c2r.adapters.huggingface import find_sites
from c2r.adapters.huggingface.routers.skeleton import model_layers, read_model_layers
from c2r.assets import tiny_folder
from c2r.errors import InputError, ModelError
from tests.adapters.huggingface.families import FAMILIES
from tests.adapters.huggingface.test_discovery import dense


def test_every_family_as_probing_finds_it() -> None:
    for family in FAMILIES:
        model = family.model()
        sites = find_sites(model)
        found = model_layers(model)
        assert list(found.routers.values()) == [site.name for site in sites], family.name
        assert {found.num_experts} == {site.num_experts for site in sites}, family.name


def test_the_configuration_is_enough(tmp_path: Path) -> None:
    found = read_model_layers(tiny_folder())
    assert found.num_experts == 32
    assert found.routers == {n: f"model.layers.{n}.mlp.gate" for n in range(4)}
    nemotron = next(family for family in FAMILIES if family.name == "nemotron_h").config()
    nemotron.save_pretrained(tmp_path)
    found = read_model_layers(tmp_path)
    assert list(found.routers) == [1, 3] and found.num_layers == 4


def test_models_without_experts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no routers"):
        model_layers(dense("llama"))
    with pytest.raises(InputError, match="cannot read the configuration"):
        read_model_layers(tmp_path)
