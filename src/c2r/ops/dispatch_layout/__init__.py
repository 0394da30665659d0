"""Which rows go where: index work of dispatch, without communication."""

from c2r.ops.backend import by_device
from c2r.ops.dispatch_layout import reference
from c2r.ops.dispatch_layout.reference import (
    SendLayout,
    decode_pairs,
    encode_pairs,
    expert_major,
    inverse,
)

one_row_per_destination = by_device(reference.one_row_per_destination)
one_row_per_pair = by_device(reference.one_row_per_pair)
sort_by_expert = by_device(reference.sort_by_expert)

__all__ = [
    "SendLayout",
    "decode_pairs",
    "encode_pairs",
    "expert_major",
    "inverse",
    "one_row_per_destination",
    "one_row_per_pair",
    "sort_by_expert",
]
