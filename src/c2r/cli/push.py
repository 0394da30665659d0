"""`c2r push`: a folder that holds a plan, on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from c2r.cli.console import JsonOption, note, print_json


def push(
    folder: Annotated[
        Path, typer.Argument(help="Folder from `c2r apply` or `c2r finetune`, or of a Trainer.")
    ],
    repository: Annotated[str, typer.Argument(help="owner/name on the hub; made where missing.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to.", show_default="main")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Upload a folder that holds a plan, with or without its model.

    `c2r.from_pretrained("owner/name")` and every command that takes a MODEL then load it under its
    plan. Log in first, with `hf auth login`.
    """
    from c2r.adapters.huggingface import push_to_hub

    url = push_to_hub(folder, repository, private=private or None, revision=revision)
    if json:
        print_json({"repository": repository, "commit": url})
    note(f"pushed {folder} as {repository}; load it with c2r.from_pretrained({repository!r})")
