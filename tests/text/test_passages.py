import json
from pathlib import Path

import pytest
from datasets import Dataset

from c2r.adapters.huggingface import load_tokenizer
from c2r.assets import tiny_folder
from c2r.errors import InputError
from c2r.text import PassageReader, check_data, passage_batches
from c2r.text import records as records_module

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
CHAT = [
    {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "ab" * i}]}
    for i in range(4)
]
TEXTS = [f"<user>{i}</s><assistant>{'ab' * i}</s>" for i in range(4)]


@pytest.fixture
def tokenizer():
    tokenizer = load_tokenizer(tiny_folder())
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts_of(path, tokenizer, **options):
    return [passage.text for passage in PassageReader(tokenizer, **options).read([path])]


@pytest.fixture(params=["jsonl", "parquet", "folder"])
def data(request, tmp_path):
    if request.param == "jsonl":
        return write_lines(tmp_path / "d.jsonl", CHAT)
    path = tmp_path / f"d.{request.param}"
    table = Dataset.from_list(CHAT)
    table.to_parquet(path) if request.param == "parquet" else table.save_to_disk(path)
    return path


def test_conversations_of_any_kind_of_file(data, tokenizer):
    assert texts_of(data, tokenizer) == TEXTS
    drawn = texts_of(data, tokenizer, seed=0)
    assert drawn != TEXTS and sorted(drawn) == TEXTS == sorted(texts_of(data, tokenizer, seed=2))


def test_tables_fill_fields_that_a_message_has_not(tmp_path, tokenizer):
    """A table has every field in every message, None where it is missing."""
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [*CHAT[1]["messages"], {"role": "user", "content": "x", "tool_calls": [call]}]
    rows = Dataset.from_list([{"messages": messages}, CHAT[2]])
    rows.select([1]).to_parquet(tmp_path / "d.parquet")
    assert "tool_calls" in rows[1]["messages"][0]
    assert texts_of(tmp_path / "d.parquet", tokenizer) == TEXTS[2:3]


def test_a_row_that_cannot_be_used_is_named(tmp_path, tokenizer):
    Dataset.from_list([{"a": "b"}]).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"row 1 of d\.parquet has the fields a; it must have"):
        texts_of(tmp_path / "d.parquet", tokenizer)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"cannot read .*bad\.parquet: "):
        texts_of(tmp_path / "bad.parquet", tokenizer)


def test_lines_of_plain_text(tmp_path, tokenizer):
    path = write_lines(tmp_path / "d.jsonl", [{"text": "one", "url": "x"}, CHAT[1]])
    found = list(PassageReader(tokenizer).read([path]))
    assert [p.answers for p in found] == [None, [(len("<user>1</s>"), len(TEXTS[1]))]]
    assert [p.text for p in found] == ["one", TEXTS[1]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.jsonl", "no such file"),
        ("none.parquet", "no such file"),
        ("a.csv", r"neither \.txt, \.jsonl nor \.parquet"),
        ("a/b/c", "nor a data set's folder or name"),
    ],
)
def test_data_that_is_not_there(name, words):
    with pytest.raises(InputError, match=words):
        check_data(Path(name))


def test_without_the_package_tables_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(records_module, "find_spec", lambda _: None)
    check_data(write_lines(tmp_path / "d.jsonl", CHAT))
    with pytest.raises(InputError, match=r"user/name is read by .* `pip install datasets`"):
        check_data(Path("user/name"))


def test_a_name_on_the_hub_is_asked_for_with_its_split(monkeypatch, tokenizer):
    asked = []

    def load(name, split):
        asked.append((name, split))
        return Dataset.from_list(CHAT)

    monkeypatch.setattr("datasets.load_dataset", load)
    assert texts_of(Path("user/name"), tokenizer) == TEXTS
    assert texts_of(Path("user/name:test"), tokenizer) == TEXTS
    assert asked == [("user/name", "train"), ("user/name", "test")]


def test_fields_that_the_template_ignores_are_collected(tmp_path, tokenizer):
    record = {"messages": [{**m, "id": 3, "weight": 1} for m in CHAT[1]["messages"]]}
    reader = PassageReader(tokenizer)
    assert [p.text for p in reader.read([write_lines(tmp_path / "d.jsonl", [record])])] == TEXTS[
        1:2
    ]
    assert reader.unused == {"id"}
    with pytest.raises(InputError, match="answers is 'first'; choose all or last"):
        PassageReader(tokenizer, answers="first")


def test_batches_of_conversations_by_hand(tmp_path, tokenizer):
    """Each a row of its own, cut where it is too long, as many tokens as asked."""
    path = write_lines(tmp_path / "d.jsonl", CHAT[:2])
    lengths = [len(text) for text in TEXTS[:2]]
    read = PassageReader(tokenizer).read
    (whole,) = passage_batches(read([path]), tokenizer, seq_len=99)
    assert whole["attention_mask"].sum(1).tolist() == lengths
    assert bytes(whole["input_ids"][0, : lengths[0]].tolist()).decode() == TEXTS[0]
    cut = list(passage_batches(read([path]), tokenizer, seq_len=20, batch_size=3, num_tokens=50))
    rows = [n for batch in cut for n in batch["attention_mask"].sum(1).tolist()]
    assert rows == [20, lengths[0] - 20, 20, 30 - lengths[0]][: len(rows)] and sum(rows) == 50
