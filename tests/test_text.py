import pytest

from c2r.errors import InputError
from c2r.text import Text, json_lines, read_texts, split_texts, token_batches


def bytes_tokenizer(text, add_special_tokens, verbose):
    assert not add_special_tokens and not verbose
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


def test_a_byte_order_mark_and_carriage_returns_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "x\\r\\n"}\r\n{"a": "y"}\r\n')
    plain, lines = read_texts([tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert plain.content == "one\ntwo\n"
    assert [record["a"] for record, _ in json_lines(lines)] == ["x\r\n", "y"]


@pytest.mark.parametrize("half", ["\\ud83d", "\\udc97", "\\ud83dx\\ude00"])
@pytest.mark.parametrize("line", ['{"a": "%s"}', '{"a": ["b", {"%s": 1}]}'])
def test_half_a_surrogate_pair_is_told_by_file_and_line(line, half):
    text = Text(name="d.jsonl", content='{"a": "\\ud83d\\ude00"}\n' + line % half)
    words = rf"line 2 of d.jsonl holds half of a surrogate pair \({half[:6]}\)"
    with pytest.raises(InputError, match=words.replace("\\u", "\\\\u")):
        list(json_lines(text))
    assert next(json_lines(text))[0] == {"a": "\U0001f600"}


@pytest.mark.parametrize("depth", [900, 20_000])
def test_json_of_any_depth_is_read_or_told_by_line(depth):
    text = Text(name="d.jsonl", content=f'{{"a": {"[" * depth}{"]" * depth}}}')
    try:
        assert [source for _, source in json_lines(text)] == ["line 1 of d.jsonl"]
    except InputError as error:
        assert "line 1 of d.jsonl is not JSON" in str(error)
