"""Loading of models, tokenizers and texts as commands name them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from c2r.adapters.text import Text

ModelArgument = Annotated[
    str,
    typer.Argument(help="Hugging Face folder or hub name; `tiny` is the embedded model."),
]
TextOption = Annotated[
    list[Path] | None,
    typer.Option("--text", help="UTF-8 text file; repeat for several. Default: embedded text."),
]


def resolve_model(name: str) -> str:
    """The folder or hub name behind a command's MODEL."""
    from c2r.assets import tiny_folder

    return str(tiny_folder()) if name == "tiny" else name


def resolve_texts(paths: Sequence[Path] | None) -> "tuple[Text, ...]":
    """The texts that a command names, or the embedded held-out ones."""
    from c2r.adapters.text import read_texts
    from c2r.assets import heldout_files

    return read_texts(paths or heldout_files())


def load_model_and_tokenizer(name: str) -> tuple[Any, Any]:
    """The model, constrained if its folder holds a plan, and its tokenizer."""
    from c2r.adapters.huggingface import load_model, load_tokenizer

    location = resolve_model(name)
    return load_model(location), load_tokenizer(location)
