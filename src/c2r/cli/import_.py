"""`c2r import`: a profile from a file that something else wrote."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from c2r.cli.console import JsonOption, note, print_json


class ImportFormat(StrEnum):
    """Formats that can be read."""

    C2R_PICKLE = "c2r-pickle"


def import_(
    file: Annotated[Path, typer.Argument(help="The file to read.")],
    out: Annotated[Path, typer.Option(help="Profile to write.")],
    format_: Annotated[
        ImportFormat,
        typer.Option("--format", help="c2r-pickle: the C2R authors' topt_*_collaboration.pkl."),
    ],
    top_k: Annotated[int, typer.Option(help="Experts per token; the file does not say.")],
    json: JsonOption = False,
) -> None:
    """Read collaboration counts that another program wrote, as a profile.

    The C2R authors' matrices are pickles: they are read without running what a pickle can ask
    for, and refused if they hold anything but one numpy array of integers.
    """
    from c2r.adapters.pickles import read_c2r_pickle

    assert format_ is ImportFormat.C2R_PICKLE, "formats are exhausted"
    profile = read_c2r_pickle(file, top_k)
    profile.save(out)
    if json:
        document = {"out": str(out), "num_layers": profile.num_layers}
        print_json({**document, "num_experts": profile.num_experts, "top_k": profile.top_k})
    note(
        f"wrote {out}: {profile.num_layers} layers, {profile.num_experts} experts, "
        f"k = {profile.top_k}, {profile.num_tokens:,} tokens"
    )
