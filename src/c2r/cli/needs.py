"""What c2r's own commands take of a cluster, for `c2r estimate --commands`."""

from typing import TYPE_CHECKING

from c2r.cli.console import print_json, print_table
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.prediction import Cluster

_SKEW = 0.5


def show_needs(model: str | None, cluster: "Cluster", tokens_per_rank: int, json: bool) -> None:
    """Prints memory of a rank and time of each command that runs a model."""
    from c2r.adapters.huggingface.sizes import read_shape
    from c2r.cli.models import resolve_model
    from c2r.prediction.needs import command_needs
    from c2r.profiling import draw_profile

    if model is None:
        raise InputError("of which model? Give --model, of which config.json is read")
    shape = read_shape(resolve_model(model))
    routing = draw_profile(shape.num_experts, shape.top_k, _SKEW, num_layers=1)
    needs = list(command_needs(shape, routing, cluster, tokens_per_rank))
    if json:
        document = {"derived": True, "model": model, "parameters": shape.parameters}
        document |= {"num_ranks": cluster.num_ranks, "tokens_per_rank": tokens_per_rank}
        print_json({**document, "commands": [need.to_json() for need in needs]})
        return
    rows = [
        [
            need.command,
            f"{need.tokens / 1e6:.3g} M",
            f"{need.weights:.2f}",
            f"{need.gathered:.2f}",
            f"{need.activations:.2f}",
            f"{need.memory:.1f}",
            "yes" if need.fits else "NO",
            f"{need.steps:,}",
            _duration(need.seconds),
        ]
        for need in needs
    ]
    columns = ["command", "tokens", "weights, GB", "gathered", "activations", "a rank, GB", "fits"]
    title = (
        f"Derived from config.json, not measured: {shape.parameters / 1e9:.1f} billion parameters, "
        f"{cluster.num_ranks} ranks as in {cluster.name}, {tokens_per_rank:,} tokens each at a time"
    )
    print_table(title, [*columns, "steps", "time"], rows)
    print(
        "Weights sharded over all ranks; in training with gradients and optimizer. Loading and\n"
        "saving are not counted. docs/how-to/needs.md has the formulas."
    )


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
