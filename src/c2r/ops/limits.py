"""Which numbers fit together; free of torch, so that planning stays so."""

from c2r.errors import PlanError


def check_top_t(top_t: int, num_experts: int, k: int) -> None:
    """Raises `PlanError` unless k - 1 <= T <= E - 1."""
    if k > num_experts:
        raise PlanError(f"k = {k} experts per token of only {num_experts}; choose k <= E")
    if not k - 1 <= top_t <= num_experts - 1:
        raise PlanError(
            f"T = {top_t} does not fit {num_experts} experts with k = {k}; "
            f"choose T from {k - 1} to {num_experts - 1}"
        )
