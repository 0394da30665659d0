import torch
from hypothesis import given
from hypothesis import strategies as st

from c2r.ops.dispatch_layout import (
    decode_pairs,
    encode_pairs,
    expert_major,
    inverse,
    one_row_per_destination,
    one_row_per_pair,
    sort_by_expert,
)


def test_a_row_goes_once_to_each_destination():
    # Row 0 chose two experts on rank 1, row 1 one on rank 0, row 2 one on each.
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    departure = one_row_per_destination(rows, torch.tensor([1, 1, 0, 2, 1, 0]), 2)
    assert departure.num_rows.tolist() == [2, 2]
    assert departure.num_pairs.tolist() == [2, 3]
    assert departure.source[:4].tolist() == [1, 2, 0, 2]
    assert departure.order[:5].tolist() == [2, 5, 0, 1, 4]
    assert departure.starts_row[:5].tolist() == [True, True, True, False, True]


def test_pairs_for_no_destination_stay():
    departure = one_row_per_destination(torch.tensor([0, 1]), torch.tensor([2, 2]), 2)
    assert departure.num_rows.tolist() == departure.num_pairs.tolist() == [0, 0]


def test_no_pairs():
    none = torch.empty(0, dtype=torch.int64)
    departure = one_row_per_destination(none, none, 3)
    assert departure.num_rows.tolist() == [0, 0, 0]
    assert len(departure.source) == 0


def test_a_row_for_every_pair_by_slot():
    order, counts = one_row_per_pair(torch.tensor([2, 0, 2, 3, 1]), 3)
    assert order.tolist() == [1, 4, 0, 2, 3]
    assert counts.tolist() == [1, 1, 2]


def test_codes_tell_rows_and_ids():
    codes = encode_pairs(torch.tensor([4, 5, 4]), torch.tensor([True, False, True]))
    assert codes.tolist() == [4, -6, 4]
    rows, ids = decode_pairs(codes)
    assert rows.tolist() == [0, 0, 1]
    assert ids.tolist() == [4, 5, 4]


def test_arrived_rows_are_copied_to_their_experts():
    # Row 0 is for experts 1 and 0, row 1 for expert 1.
    copies, counts = sort_by_expert(torch.tensor([0, 0, 1]), torch.tensor([1, 0, 1]), 2, 3)
    assert copies.source.tolist() == [0, 0, 1]
    assert copies.members.tolist() == [1, 0, 2]
    assert copies.starts.tolist() == [0, 2]
    assert counts.tolist() == [1, 2, 0]


def test_rank_major_to_expert_major():
    # Worked examples of torchtitan's test of the same step.
    assert expert_major(torch.tensor([[2, 3], [1, 4]]), 10).tolist() == [
        *(0, 1, 5, 2, 3, 4, 6, 7, 8, 9)
    ]
    assert expert_major(torch.tensor([[0, 3], [2, 0]]), 5).tolist() == [3, 4, 0, 1, 2]
    assert expert_major(torch.full((3, 2), 2), 12).tolist() == [
        *(0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11)
    ]
    assert expert_major(torch.zeros(2, 2, dtype=torch.int64), 0).tolist() == []


def test_inverse():
    assert inverse(torch.tensor([2, 0, 1])).tolist() == [1, 2, 0]


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), max_size=12),
)
def test_every_row_once_at_every_destination(destinations):
    rows = torch.arange(len(destinations)).repeat_interleave(3)
    flat = torch.tensor(destinations, dtype=torch.int64).flatten()
    departure = one_row_per_destination(rows, flat, 4)
    num_rows = departure.num_rows.tolist()
    for destination, sent in enumerate(departure.source[: sum(num_rows)].split(num_rows)):
        expected = [row for row, chosen in enumerate(destinations) if destination in chosen]
        assert sent.tolist() == expected
    assert departure.num_pairs.tolist() == [int((flat == d).sum()) for d in range(4)]
