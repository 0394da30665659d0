"""What runs on a cluster: the sizes of a model's layers, and how many tokens at a time."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from c2r.errors import InputError
from c2r.profiling import CollaborationProfile


class Phase(StrEnum):
    """What is done with the tokens; decoding reads the weights anew for few of them."""

    TRAINING = "training"
    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def usual_tokens(self) -> int:
        """Tokens of each rank in a step, where nobody says how many."""
        return 128 if self is Phase.DECODE else 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """The sizes of a model, from its config alone.

    Attributes:
        hidden_size: values of a token between layers.
        expert_size: inner width of a routed expert.
        shared_expert_size: inner width of all shared experts of a layer together; 0 without.
        num_layers: layers in all.
        num_moe_layers: layers with routed experts.
        dense_parameters: parameters of a token's way through the rest: attention, dense layers,
            and the head; the embedding is only looked up.
        num_matrices: of an expert: 3 where a gate is multiplied in.
    """

    hidden_size: int
    expert_size: int
    shared_expert_size: int
    num_layers: int
    num_moe_layers: int
    dense_parameters: int
    num_matrices: int = 3

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert."""
        return self.num_matrices * self.hidden_size * self.expert_size

    @property
    def shared_parameters(self) -> int:
        """Of the shared experts of one layer."""
        return self.num_matrices * self.hidden_size * self.shared_expert_size

    def to_json(self) -> dict[str, int]:
        """The sizes as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ModelSizes":
        """The sizes that `to_json` gave.

        Raises `InputError` where one is missing or no whole number from 0 to 10^15.
        """
        values = {}
        for field in fields(cls):
            value = document.get(field.name, 3 if field.name == "num_matrices" else None)
            if not isinstance(value, int) or not 0 <= value <= 10**15:
                raise InputError(
                    f"the model's {field.name} is {value}; profile the model again, or give its "
                    f"sizes (model_sizes)"
                )
            values[field.name] = value
        return cls(**values)


UNKNOWN_SIZES = ModelSizes(
    hidden_size=2048,
    expert_size=768,
    shared_expert_size=0,
    num_layers=48,
    num_moe_layers=48,
    dense_parameters=1_500_000_000,
)
"""Of Qwen3-30B-A3B: what a model is taken to be whose profile does not tell its sizes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Tokens that go through a model at a time.

    Attributes:
        sizes: of the model.
        tokens_per_rank: tokens of each rank in a step, at least 1.
        phase: what is done with them.
        value_bytes: bytes of a value, of activations and weights alike: 2 for bfloat16.

    Raises:
        InputError: no tokens, or values without bytes.
    """

    sizes: ModelSizes
    tokens_per_rank: int
    phase: Phase = Phase.PREFILL
    value_bytes: float = 2.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.tokens_per_rank < 1:
            raise InputError(
                f"a workload of {self.tokens_per_rank} tokens a rank; give at least 1 "
                "(tokens_per_rank)"
            )
        if not 0 < self.value_bytes <= 8:
            raise InputError(f"values of {self.value_bytes:g} bytes; give 2 for bfloat16")

    @classmethod
    def of(
        cls,
        profile: CollaborationProfile,
        tokens_per_rank: int = 4096,
        phase: Phase = Phase.PREFILL,
        value_bytes: float = 2.0,
    ) -> "Workload":
        """Tokens through the model that was profiled; of `UNKNOWN_SIZES` where it does not say."""
        request = profile.provenance.get("request")
        known = request.get("sizes") if isinstance(request, Mapping) else None
        sizes = ModelSizes.from_json(known) if isinstance(known, Mapping) else UNKNOWN_SIZES
        return cls(
            sizes=sizes, tokens_per_rank=tokens_per_rank, phase=phase, value_bytes=value_bytes
        )

    @property
    def row_bytes(self) -> float:
        """Of one token's values between layers."""
        return self.sizes.hidden_size * self.value_bytes

    @property
    def passes(self) -> int:
        """How often rows travel each way: in training their gradients, too."""
        return 2 if self.phase is Phase.TRAINING else 1

    @property
    def products(self) -> int:
        """Products with a weight, counted in forward ones: training needs two more."""
        return 3 if self.phase is Phase.TRAINING else 1
