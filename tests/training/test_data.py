import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2r.adapters.huggingface import load_model, load_tokenizer
from c2r.assets import tiny_folder
from c2r.errors import InputError
from c2r.measuring import NO_LOSS
from c2r.measuring.forward import next_token_targets
from c2r.text import read_texts, token_batches
from c2r.training.data import DataSettings, Piece, collate, pack, read_windows
from tests.cli.test_road import make_tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte."""
    return load_tokenizer(tiny_folder())


@pytest.fixture
def chat_tokenizer():
    tokenizer = load_tokenizer(tiny_folder())
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write(folder, *records, name="data.jsonl"):
    path = folder / name
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines))
    return path


def read(path, tokenizer, **settings):
    return read_windows([path], tokenizer, DataSettings(**{"seq_len": 512, **settings}))


def text_of(ids):
    return bytes(i for i in ids.tolist() if i != NO_LOSS).decode()


def pieces_of(examples):
    """Each packed piece as (text, text that carries loss)."""
    found = []
    for example in examples:
        starts = (example["position_ids"] == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(example["input_ids"])], strict=True):
            part = {name: values[start:end] for name, values in example.items()}
            assert part["position_ids"].tolist() == list(range(end - start))
            found.append((text_of(part["input_ids"]), text_of(part["labels"])))
    return found


ALICE = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "+1?"},
    {"role": "assistant", "content": "3"},
]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": ALICE},
        {"conversations": [m["content"] for m in ALICE]},
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]}
                for m in ALICE
            ]
        },
    ],
)
def test_only_answers_carry_loss(tokenizer, chat_tokenizer, tmp_path, record):
    path = write(tmp_path, record)
    (plain,) = pieces_of(read(path, tokenizer).windows)
    assert plain == (
        "### User:\n1+1?\n\n### Assistant:\n2\n\n### User:\n+1?\n\n### Assistant:\n3\n\n",
        "2\n\n3\n\n",
    )
    (chat,) = pieces_of(read(path, chat_tokenizer).windows)
    assert chat == (
        "<user>1+1?</s><assistant>2</s><user>+1?</s><assistant>3</s>",
        "2</s>3</s>",
    )


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        ({"instruction": "Double.", "input": "4", "output": "8"}, "Double.\n\n4"),
        ({"instruction": "Double 4.", "input": "", "output": "8"}, "Double 4."),
        ({"question": "4*2?", "answer": "8"}, "4*2?"),
        ({"prompt": "4*2 =", "completion": "8"}, "4*2 ="),
    ],
)
def test_pairs_of_a_question_and_its_answer(chat_tokenizer, tmp_path, record, asked):
    found = pieces_of(read(write(tmp_path, record), chat_tokenizer).windows)
    assert found == [(f"<user>{asked}</s><assistant>8</s>", "8</s>")]


def test_a_system_message_and_special_tokens(tmp_path):
    tokenizer = load_tokenizer(tiny_folder())
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    messages = [{"role": "system", "content": "Be brief."}, *ALICE[:2]]
    (example,) = read(write(tmp_path, {"messages": messages}), tokenizer).windows
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    text = b"Be brief.\n\n### User:\n1+1?\n\n### Assistant:\n"
    assert example["input_ids"].tolist() == [start, *text, *b"2", end, *b"\n\n"]
    assert example["labels"].tolist()[-4:] == [*b"2", end, *b"\n\n"]
    assert set(example["labels"].tolist()[:-4]) == {NO_LOSS}


def test_characters_of_several_tokens(tokenizer, tmp_path):
    record = {"question": "größer: 1 → ?", "answer": "→ 2 ö"}
    ((_, learnt),) = pieces_of(read(write(tmp_path, record), tokenizer).windows)
    assert learnt == "→ 2 ö\n\n"


def test_plain_text_is_cut_into_windows(tokenizer, tmp_path):
    path = write(tmp_path, "abcdefghij", name="a.txt")
    data = read(path, tokenizer, seq_len=4, packing=False)
    assert sorted(pieces_of(data.windows)) == [("abcd", "bcd"), ("efgh", "fgh"), ("ij", "j")]
    assert (data.num_pieces, data.num_overlong, data.num_skipped) == (3, 0, 0)
    alone = read(path, tokenizer, seq_len=3, packing=False)
    assert (alone.num_pieces, alone.num_skipped) == (3, 1)  # nothing to predict in "j"


def test_windows_of_text_begin_and_count_as_in_measuring(tmp_path):
    """The same tokens are shown, and the same are predicted, whichever command cuts the text."""
    tokenizer = make_tokenizer()
    path = write(tmp_path, "abcdefghij", name="a.txt")
    windows = read(path, tokenizer, seq_len=4, packing=False, seed=0).windows
    (measured,) = token_batches(read_texts([path]), tokenizer, seq_len=4, batch_size=4)
    targets = next_token_targets(measured)
    for row, mask, target in zip(*measured.values(), targets, strict=True):
        number = int(mask.sum())
        (same,) = (w for w in windows if w["input_ids"].tolist() == row[:number].tolist())
        assert same["labels"].tolist() == [NO_LOSS, *target[: number - 1].tolist()]
    assert len(windows) == 4 and all(window["input_ids"][0] == 1 for window in windows)


def test_the_seed_draws_the_order(tokenizer, tmp_path):
    records = [{"question": str(i), "answer": "a" * (i % 7 + 1)} for i in range(40)]
    path = write(tmp_path, *records)
    first, again, other = (read(path, tokenizer, seq_len=99, seed=seed) for seed in (0, 0, 1))
    assert pieces_of(first.windows) == pieces_of(again.windows) != pieces_of(other.windows)
    assert sorted(pieces_of(first.windows)) == sorted(pieces_of(other.windows))
    assert first.num_pieces == 40 and len(first.windows) < 40


def test_overlong_examples_are_counted(tokenizer, tmp_path):
    short, long = {"question": "1", "answer": "2"}, {"question": "1", "answer": "2" * 99}
    endless, empty = {"question": "1" * 99, "answer": "2"}, {"question": "1", "answer": " \n"}
    path = write(tmp_path, short, long, endless, empty, "")
    cut = read(path, tokenizer, seq_len=64)
    assert (cut.num_pieces, cut.num_overlong, cut.num_skipped) == (2, 2, 2)
    head = len("### User:\n1\n\n### Assistant:\n")
    learnt = sorted(answer for _, answer in pieces_of(cut.windows))
    assert learnt == ["2\n\n", "2" * (64 - head)]
    kept = read(path, tokenizer, seq_len=64, overlong="drop")
    assert (kept.num_pieces, kept.num_overlong, kept.num_skipped) == (1, 2, 1)


@st.composite
def packings(draw):
    seq_len = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(1, seq_len), max_size=30))
    tokens = iter(range(sum(lengths)))
    ids = [[next(tokens) for _ in range(length)] for length in lengths]
    return seq_len, [Piece(part, [-token for token in part]) for part in ids]


@given(packings())
def test_packing_keeps_every_piece_whole(case):
    seq_len, pieces = case
    windows = pack(pieces, seq_len)
    packed = [piece for window in windows for piece in window]
    assert sorted(packed, key=lambda p: p.ids) == sorted(pieces, key=lambda p: p.ids)
    assert all(0 < sum(map(len, window)) <= seq_len for window in windows)
    assert windows == first_fit(pieces, seq_len)


def first_fit(pieces, seq_len):
    windows = []
    for piece in pieces:
        fitting = [w for w in windows if sum(map(len, w)) + len(piece) <= seq_len]
        if fitting:
            fitting[0].append(piece)
        else:
            windows.append([piece])
    return windows


def test_first_fit_by_hand():
    pieces = [Piece([n] * n, [n] * n) for n in (3, 4, 2, 1, 5)]
    assert [[len(p) for p in w] for w in pack(pieces, 6)] == [[3, 2, 1], [4], [5]]


def test_a_batch_by_hand(tokenizer, tmp_path):
    data = read(write(tmp_path, "abcde", name="a.txt"), tokenizer, seq_len=3, packing=False)
    long, short = sorted(data.windows, key=lambda e: -len(e["input_ids"]))
    batch = collate([short, long])
    assert batch["input_ids"].tolist() == [[*b"de", 0], [*b"abc"]]
    assert batch["labels"].tolist() == [[-100, *b"e", -100], [-100, *b"bc"]]
    assert batch["position_ids"].tolist() == [[0, 1, 0], [0, 1, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_pieces_do_not_see_each_other(tokenizer, tmp_path, attention):
    """Logits of the embedded model in a padded batch of packed windows, and of each piece alone."""
    model = load_model(tiny_folder(), torch.float32, attn_implementation=attention)
    records = [{"question": f"What is {i}?", "answer": "So much. " * i} for i in range(1, 9)]
    data = read(write(tmp_path, *records), tokenizer, seq_len=160)
    batch = collate(data.windows)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    num_pieces = 0
    with torch.no_grad():
        together = model(**inputs, use_cache=False).logits
        for row, example in zip(together, data.windows, strict=True):
            starts = (example["position_ids"] == 0).nonzero().flatten().tolist()
            for start, end in zip(starts, [*starts[1:], len(example["input_ids"])], strict=True):
                alone = model(example["input_ids"][None, start:end]).logits[0]
                torch.testing.assert_close(row[start:end], alone, rtol=1e-4, atol=1e-4)
                num_pieces += 1
        leaking = model(**inputs, use_cache=True).logits
    assert num_pieces == 8 > len(data.windows) > 1
    assert not torch.allclose(together, leaking, atol=0.1)  # why there must be no cache


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 of data.jsonl is not JSON"),
        ("[1]", "line 2 of data.jsonl holds a list"),
        ('{"text": "a", "output": "b"}', "has the fields text, output; it must have one of"),
        ("{}", r"has the fields \(none\)"),
        ('{"question": 1, "answer": "2"}', "line 2 of data.jsonl: question is a int"),
        ('{"messages": []}', "messages must be a list of at least one"),
        ('{"messages": [{"role": "user"}]}', "has a message of role; it must have role and"),
        ('{"messages": [{"role": "user", "content": null}]}', "content is a NoneType"),
        ('{"conversations": ["a"]}', "line 2 of data.jsonl has the roles user; give user and"),
        (json.dumps({"messages": ALICE[1:3]}), "has the roles assistant, user; give user and"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "has the roles tool"),
    ],
)
def test_lines_that_cannot_be_used(tokenizer, tmp_path, line, words):
    path = write(tmp_path, {"question": "1", "answer": "2"}, line)
    with pytest.raises(InputError, match=words):
        read(path, tokenizer)


def test_files_that_cannot_be_used(tokenizer, tmp_path):
    with pytest.raises(InputError, match="check the path"):
        read(tmp_path / "none.jsonl", tokenizer)
    with pytest.raises(InputError, match=r"a\.csv is neither \.txt, \.jsonl nor \.parquet"):
        read(write(tmp_path, "a,b", name="a.csv"), tokenizer)
    records = [{"question": "1" * 50, "answer": "2"}, {"question": "1", "answer": ""}]
    words = "no usable example among 2: 1 are longer than 40 tokens, 2 have nothing to learn"
    with pytest.raises(InputError, match=words):
        read(write(tmp_path, *records), tokenizer, seq_len=40)
    with pytest.raises(InputError, match="choose truncate or drop"):
        DataSettings(overlong="split")
    with pytest.raises(InputError, match="seq_len 1 leaves no token"):
        DataSettings(seq_len=1)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        read(write(tmp_path, "ab", name="a.txt"), lambda *_: None)


def test_chat_templates_that_cannot_be_used(tmp_path, chat_tokenizer):
    path = write(tmp_path, {"messages": ALICE})
    chat_tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(
        InputError, match="the answer of message 2 of 4 is not in what the chat template renders"
    ):
        read(path, chat_tokenizer)
    chat_tokenizer.chat_template = "{{ raise_exception('no second question') }}"
    with pytest.raises(InputError, match=r"line 1 of data.jsonl: .* \(no second question\)"):
        read(path, chat_tokenizer)
