import pytest

from c2r.errors import InputError
from c2r.text import Text, json_lines, read_texts


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
