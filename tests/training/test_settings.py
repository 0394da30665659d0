import math

import pytest

from c2r.errors import InputError
from c2r.training import FinetuneSettings


def test_what_is_given_goes_before_the_preset():
    chosen = FinetuneSettings.choose("paper-qwen", {"batch_size": 8, "mode": None})
    paper = FinetuneSettings.choose("paper-llama", {})
    assert (chosen.batch_size, chosen.num_epochs, chosen.bf16, chosen.mode) == (8, 2, True, "full")
    assert (paper.batch_size, paper.learning_rate, paper.warmup) == (128, 2e-5, 0.03)
    assert math.ceil(32 * chosen.warmup) == 10  # steps, as in the authors' script
    with pytest.raises(InputError, match="choose paper-qwen, paper-llama"):
        FinetuneSettings.choose("paper", {})


@pytest.mark.parametrize(
    ("batch_size", "most", "processes", "passes"),
    [(16, 4, 1, 4), (16, 4, 2, 2), (16, 100, 4, 1), (6, 4, 1, 2), (7, 4, 1, 7), (2, 4, 4, 1)],
)
def test_passes_are_as_large_as_allowed(batch_size, most, processes, passes):
    settings = FinetuneSettings(batch_size=batch_size).with_passes_of(most, processes)
    assert settings.accumulation == passes


def test_epochs_become_steps_that_cover_all_examples():
    assert FinetuneSettings(num_epochs=2, batch_size=16).steps(25) == 4
    assert FinetuneSettings(num_steps=7, batch_size=16).steps(25) == 7
    assert FinetuneSettings(batch_size=16, accumulation=2).batch_per_pass(4) == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mode", "half", "choose full, router, lora"),
        ("num_steps", 0, "num_steps is 0; give a whole number from 1"),
        ("learning_rate", 0.0, "learning_rate is 0.0; give a positive number"),
        ("learning_rate", float("nan"), "give a positive number"),
        ("kl_weight", -1.0, "kl_weight is -1.0; give 0 or more"),
        ("warmup", 1.0, "warmup is 1.0; give a share"),
    ],
)
def test_settings_that_cannot_be_meant(name, value, message):
    with pytest.raises(InputError, match=message):
        FinetuneSettings(**{name: value})
