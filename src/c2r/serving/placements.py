"""Where an engine places the experts of a model folder, beside where the folder's plan does."""

from pathlib import Path

import numpy as np

from c2r.adapters.engines import check_any_export
from c2r.errors import InputError, PlanMismatchError
from c2r.plans import Plan, contiguous_placement
from c2r.plans.model_folder import is_renumbered


def check_placement(model: str, plan: Plan, path: Path) -> None:
    """Raises `PlanMismatchError` unless a file places the experts of a folder as its plan does.

    Args:
        model: the folder that the engine serves, or a hub name.
        plan: that it holds.
        path: what `c2r export` wrote, which the engine is started with.
    """
    try:
        check_any_export(plan, path)
    except InputError as error:
        if is_renumbered(Path(model)):
            raise PlanMismatchError(
                f"{path} is not for {model}, whose experts `c2r permute` renumbered and which are "
                "placed in order; start the engine without the file, or with the folder as it was"
            ) from None
        raise PlanMismatchError(
            f"{path} does not place the experts of {model} as its plan {plan.fingerprint} does: "
            f"{error}"
        ) from None


def is_in_order(plan: Plan) -> bool:
    """Whether a plan places its experts in order, as engines do that are told of no placement."""
    num_ranks = plan.topology.num_ranks
    return all(
        np.array_equal(layer.placement, contiguous_placement(layer.num_experts, num_ranks))
        for layer in plan.layers
    )
