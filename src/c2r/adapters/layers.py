"""How layers of models are named and numbered, in all formats."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLayers:
    """The MoE layers of a model.

    Attributes:
        num_experts: E.
        routers: router paths by the number of their layer, dense layers counted.
        num_layers: layers of the model.
        num_groups: groups of neighbouring experts that the routers limit tokens to; 1 for none.
    """

    num_experts: int
    routers: dict[int, str]
    num_layers: int
    num_groups: int = 1


def split_layer(path: str) -> tuple[str, str] | None:
    """`model.layers.3.mlp.gate` as `("model.layers.3", "mlp.gate")`; None without a number."""
    parts = path.split(".")
    position = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if position is None:
        return None
    return ".".join(parts[: position + 1]), ".".join(parts[position + 1 :])
