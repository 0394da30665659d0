import pytest

from c2r.errors import InputError
from c2r.text import Text, named_beginning, read_texts, split_texts, token_batches
from c2r.text.batches import beginning_of


def bytes_tokenizer(text, add_special_tokens, verbose):
    assert not verbose
    return {"input_ids": list(text.encode())}


def batches(*contents, **options):
    texts = [Text(name=str(i), content=content) for i, content in enumerate(contents)]
    return list(token_batches(texts, bytes_tokenizer, **options))


def test_all_of_a_short_text_in_order_with_the_tail_padded():
    found = batches("abcdefghij", seq_len=4, batch_size=2)
    assert [b["input_ids"].tolist() for b in found] == [
        [list(b"abcd"), list(b"efgh")],
        [list(b"ij")],
    ]
    padded = batches("abcdefghij", seq_len=4, batch_size=3)[0]
    assert padded["attention_mask"].tolist() == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert padded["input_ids"][2].tolist() == [*b"ij", 0, 0]


@pytest.mark.parametrize("num_tokens", [1, 4, 6, 7, 10])
def test_exactly_as_many_tokens_as_asked(num_tokens):
    found = batches("abcdefghij", seq_len=4, batch_size=2, num_tokens=num_tokens)
    assert sum(int(b["attention_mask"].sum()) for b in found) == num_tokens


def test_every_token_once_whatever_the_seed():
    text = "".join(chr(33 + i % 90) for i in range(30_000))
    for seed in (0, 1):
        found = batches(text, seq_len=64, batch_size=8, seed=seed)
        tokens = [t for b in found for t in b["input_ids"][b["attention_mask"].bool()].tolist()]
        assert sorted(tokens) == sorted(text.encode())
    first = batches(text, seq_len=64, batch_size=8, seed=0, num_tokens=640)
    again = batches(text, seq_len=64, batch_size=8, seed=0, num_tokens=640)
    other = batches(text, seq_len=64, batch_size=8, seed=5, num_tokens=640)
    assert all((a["input_ids"] == b["input_ids"]).all() for a, b in zip(first, again, strict=True))
    assert any((a["input_ids"] != b["input_ids"]).any() for a, b in zip(first, other, strict=True))


def test_texts_take_turns():
    found = batches("a" * 20_000, "b" * 90_000, seq_len=8192, batch_size=1, num_tokens=4 * 8192)
    share = sum((b["input_ids"] == ord("a")).sum() for b in found)
    assert share == 2 * 8192


def test_halves_are_disjoint_and_complete():
    text = Text(name="t", content="abcdefg")
    (first,), (second,) = split_texts([text])
    assert first.content + second.content == text.content and len(first.content) == 3
    with pytest.raises(InputError, match="too short to split"):
        split_texts([Text(name="t", content="a")])


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="cannot read text"):
        read_texts([tmp_path / "none.txt"])
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"empty.txt is empty"):
        read_texts([tmp_path / "empty.txt"])
    (tmp_path / "latin.txt").write_bytes("straße".encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 4\)"):
        read_texts([tmp_path / "latin.txt"])
    with pytest.raises(InputError, match="must be positive"):
        batches("abc", seq_len=0)


class BeginsTexts:
    """A tokenizer of bytes that begins each text with two tokens of its own, and ends it."""

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = list(text.encode())
        return {"input_ids": [256, 257, *ids, 258] if add_special_tokens else ids}

    def convert_ids_to_tokens(self, ids):
        return [f"<{id}>" for id in ids]


@pytest.mark.parametrize("num_tokens", [None, 3, 2, 1, 8, 9, 10, 11, 19])
def test_windows_begin_as_the_tokenizer_begins_a_text(num_tokens):
    text = Text(name="t", content="abcdefghijklmnop")
    options = {"seq_len": 8, "batch_size": 3, "num_tokens": num_tokens}
    rows = [
        row[kept.bool()].tolist()
        for batch in token_batches([text], BeginsTexts(), **options)
        for row, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert all(row[:2] == [256, 257] and 2 < len(row) <= 8 for row in rows)
    seen = bytes(token for row in rows for token in row[2:]).decode()
    assert text.content.startswith(seen)
    if num_tokens is None:
        assert seen == text.content
    else:  # a rest with no room for text is left out
        assert sum(map(len, rows)) == (num_tokens if num_tokens % 8 > 2 else num_tokens // 8 * 8)
    assert named_beginning(BeginsTexts()) == {"begins_with": ["<256>", "<257>"]}
    with pytest.raises(InputError, match="begins each window with 2 tokens"):
        list(token_batches([text], BeginsTexts(), seq_len=2))


def test_a_tokenizer_that_only_ends_texts_begins_none():
    def ends(text, add_special_tokens, verbose):
        return {"input_ids": [*text.encode(), *[258] * add_special_tokens]}

    assert beginning_of(ends) == []
