"""The embedded tiny MoE model and its held-out text, which the demo and the tests use."""

from pathlib import Path

HELDOUT_KINDS = ("code", "prose", "headers")


def tiny_folder() -> Path:
    """The embedded Hugging Face model: byte-level Qwen2-MoE, 4 layers, 32 experts, k = 4."""
    return Path(__file__).parent / "tiny"


def heldout_files() -> tuple[Path, ...]:
    """Text that the embedded model was not trained on: code, prose and C headers."""
    return tuple(tiny_folder() / "heldout" / f"{kind}.txt" for kind in HELDOUT_KINDS)
