"""Batches as people have them: run as they are, or refused in one line; nothing of them is lost."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from c2r.adapters.huggingface import find_sites, profile, read_batch
from c2r.errors import InputError
from c2r.measuring import measure
from tests.adapters.huggingface.checks import expert_loads, small_plan, token_ids
from tests.adapters.huggingface.families import FAMILIES
from tests.adapters.huggingface.independent import loads_of_rows, loss_of_rows
from tests.adapters.huggingface.test_errors_leave_no_trace import fingerprint_of

BY_NAME = {family.name: family for family in FAMILIES}
IDS = token_ids()
ROWS = IDS.tolist()
SHORT = [ROWS[0][:9], ROWS[1]]
ONES = torch.ones_like(IDS)
LEFT = torch.tensor([[0] * 15 + ROWS[0][:9], ROWS[1]])


@pytest.fixture(scope="module")
def model():
    return BY_NAME["qwen3_moe"].model()


@pytest.fixture(scope="module")
def plan(model):
    return small_plan(find_sites(model))


WHOLE = {
    "tensors": [{"input_ids": IDS, "attention_mask": ONES}],
    "no mask": [{"input_ids": IDS}],
    "lists": [{"input_ids": ROWS, "attention_mask": ONES.tolist()}],
    "tuples of lists": [{"input_ids": tuple(ROWS)}],
    "arrays": [{"input_ids": IDS.numpy(), "attention_mask": ONES.numpy()}],
    "a list of tensors": [{"input_ids": list(IDS)}],
    "a list of arrays": [{"input_ids": [np.array(row) for row in ROWS]}],
    "rows": [{"input_ids": row} for row in IDS],
    "rows of lists": [{"input_ids": row, "attention_mask": [1] * 24} for row in ROWS],
    "one batch": {"input_ids": IDS, "attention_mask": ONES},
    "one tensor": IDS,
    "one array": IDS.numpy(),
    "tensors alone": list(IDS),
    "lists alone": ROWS,
    "an encoding": [BatchEncoding({"input_ids": ROWS, "attention_mask": ONES.tolist()})],
    "one encoding": BatchEncoding({"input_ids": IDS, "attention_mask": ONES}),
    "a generator": ({"input_ids": row[None]} for row in IDS),
    "int32": [{"input_ids": IDS.int(), "attention_mask": ONES.bool()}],
    "entries of None": [{"input_ids": IDS, "attention_mask": None, "labels": None}],
    "types that say nothing": [{"input_ids": IDS, "token_type_ids": torch.zeros_like(IDS)}],
}
PARTS = {
    "rows of several lengths": [{"input_ids": SHORT}],
    "with their masks": [{"input_ids": SHORT, "attention_mask": [[1] * 9, [1] * 24]}],
    "tensors of several lengths": [{"input_ids": [torch.tensor(row) for row in SHORT]}],
    "a mask that starts with 0": [
        {"input_ids": LEFT, "attention_mask": (torch.arange(24) >= torch.tensor([[15], [0]])).int()}
    ],
}


@pytest.mark.parametrize("name", [*WHOLE, *PARTS])
def test_figures_are_those_of_the_rows_run_alone(name, model, plan):
    batches, rows = (WHOLE[name], ROWS) if name in WHOLE else (PARTS[name], SHORT)
    batches = batches if not hasattr(batches, "send") else list(batches)
    found = profile(model, batches)
    assert found.num_tokens == sum(map(len, rows))
    assert np.array_equal(expert_loads(found), loads_of_rows(model, rows))
    measured = measure(model, batches)
    assert measured.num_tokens == sum(map(len, rows)) - len(rows)
    assert measured.loss == pytest.approx(loss_of_rows(model, rows), rel=1e-5)


def test_a_row_of_numbers_is_one_batch(model):
    for row in (ROWS[0], IDS[0], IDS[0].numpy(), tuple(ROWS[0])):
        assert np.array_equal(expert_loads(profile(model, row)), loads_of_rows(model, ROWS[:1]))


def test_packed_pieces_do_not_see_each_other(model):
    pieces = [ROWS[0][:10], ROWS[0][10:], ROWS[1][:3], ROWS[1][3:]]
    packed = torch.tensor([[token for piece in pieces for token in piece]])
    positions = torch.tensor([[i for piece in pieces for i in range(len(piece))]])
    batch = {"input_ids": packed, "position_ids": positions}
    assert np.array_equal(expert_loads(profile(model, [batch])), loads_of_rows(model, pieces))
    measured = measure(model, [batch])
    assert measured.num_tokens == 48 - 4
    assert measured.loss == pytest.approx(loss_of_rows(model, pieces), rel=1e-5)
    without = profile(model, [{"input_ids": packed}])
    assert not np.array_equal(expert_loads(without), loads_of_rows(model, pieces)), (
        "the test can fail"
    )


def test_labels_are_no_input_and_say_what_counts(model):
    labels = IDS.masked_fill(torch.arange(24) < 20, -100)
    measured = measure(model, [{"input_ids": IDS, "labels": labels}])
    assert measured.num_tokens == 2 * 4
    found = profile(model, [{"input_ids": IDS, "labels": labels}])
    assert np.array_equal(expert_loads(found), loads_of_rows(model, ROWS))


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ("a text", "are text"),
        (["a text"], "is text"),
        ([["a text", "another"]], "is text"),
        (7, "are a int"),
        ([None], "NoneType"),
        ([object()], "object"),
        ([{"attention_mask": ONES}], "must have input_ids"),
        ([{"input_ids": torch.zeros(1, 0)}], r"shape \[1, 0\]"),  # a tokenizer's, of an empty text
        ([{"input_ids": []}], r"shape \[0\]|shape \[1, 0\]"),
        ([{"input_ids": IDS[None]}], r"shape \[1, 2, 24\]"),
        ([{"input_ids": 5}], "int"),
        ([{"input_ids": [[1, 2], [3, "x"]]}], "no array of numbers|is text"),
        ([{"input_ids": IDS.float()}], "float32"),
        ([{"input_ids": IDS > 3}], "bool"),
        (
            [{"input_ids": IDS, "attention_mask": ONES[:, :20]}],
            r"\[2, 20\], input_ids of",
        ),
        ([{"input_ids": IDS, "attention_mask": ONES[0]}], r"\[24\]"),
        ([{"input_ids": IDS, "attention_mask": ONES[None, None]}], r"\[1, 1, 2, 24\]"),
        ([{"input_ids": IDS, "labels": IDS[:1]}], "labels is of shape"),
        ([{"input_ids": IDS, "position_ids": ONES[:, :5]}], r"position_ids have shape \[2, 5\]"),
        ([{"input_ids": IDS, "pixel_values": torch.ones(1, 3, 8, 8)}], "pixel_values, which"),
        ([{"input_ids": IDS, "token_type_ids": ONES}], "token_type_ids, which"),
        ([{"input_ids": IDS, "inputs_embeds": torch.ones(2, 24, 32)}], "inputs_embeds, which"),
        ([{"input_ids": IDS, "use_cache": True, "past_key_values": 1}], "past_key_values, use_ca"),
        ([{"input_ids": IDS, "text": ["a", "b"]}], "text of a batch is text"),
        ([{"input_ids": IDS, "attention_mask": ONES * 0}], "no token"),
        ([], "no token|no batches"),
    ],
)
def test_what_cannot_be_run_is_refused_and_leaves_no_trace(batches, words, model, plan):
    before = fingerprint_of(model)
    for door in (profile, measure):
        with pytest.raises(InputError, match=words):
            door(model, batches)
        assert fingerprint_of(model) == before


@pytest.mark.parametrize("bad", [96, 500, -1, 2**40])
def test_ids_beyond_the_embedding_are_named_with_its_size(bad, model, plan):
    ids = IDS.clone()
    ids[1, 5] = bad
    before = fingerprint_of(model)
    for door in (profile, lambda *given: measure(*given, plan)):
        with pytest.raises(InputError, match=rf"token id {bad} .* has 96 rows \(0 to 95\)"):
            door(model, [{"input_ids": IDS}, {"input_ids": ids}])
        assert fingerprint_of(model) == before
    assert profile(model, [{"input_ids": IDS.fill_diagonal_(95)}]).num_tokens == 48


def test_what_was_read_is_read_again_as_it_is(model):
    once = read_batch(model, {"input_ids": SHORT})
    twice = read_batch(model, once)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)
