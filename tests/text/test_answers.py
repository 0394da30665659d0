import pytest

from c2r.adapters.huggingface import load_tokenizer
from c2r.assets import tiny_folder
from c2r.errors import InputError
from c2r.text.answers import render
from c2r.text.conversations import conversation_of

# Each as a family of models has it, in short.
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
THINKING = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}{{ '[' + m.role + ']\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}
{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}
{{- m.content }}{{ '<end>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"""
OPENING = """{%- for m in messages %}{{ '<' + m.role + '>' }}
{{- m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}
{{- '<eos>' if m.role == 'assistant' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant><think>\n' }}{% endif %}"""
LAST_ENDS = """{%- for m in messages %}{{ '<start>' + m.role + '<message>' + m.content }}
{{- '<return>' if loop.last and not add_generation_prompt else '<end>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start>assistant<message>' }}{% endif %}"""
CALLING = """{%- if tools %}{{ '<tools>' + (tools | map(attribute='name') | join(',')) }}
{{- '</tools>' }}{% endif %}
{%- for m in messages %}{{ '<' + m.role + '>' }}
{%- if m.content %}{{ m.content }}{% endif %}
{%- for c in m.tool_calls or [] %}{{ '<call>' + c.function.name }}
{{- c.function.arguments | tojson }}{{ '</call>' }}{% endfor %}{{ '<end>' }}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture
def tokenizer_of():
    def tokenizer_of(template):
        tokenizer = load_tokenizer(tiny_folder())
        tokenizer.add_tokens(["<end>", "<return>", "<eos>"])
        tokenizer.chat_template = template
        return tokenizer

    return tokenizer_of


def turns(*contents, **fields):
    """A conversation of user and assistant in turn; `fields` are of its last message."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    messages[-1].update(fields)
    return {"messages": messages}


def answers(record, tokenizer, **options):
    text, spans = render(conversation_of(record, "line 1 of d.jsonl"), tokenizer, **options)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (PLAIN, ["b</s>", "d</s>"]),
        (THINKING, ["b<end>\n", "<think>\nwhy\n</think>\n\nd<end>\n"]),
        (OPENING, ["b<eos>", "d<eos>"]),
        (LAST_ENDS, ["b<end>", "d<return>"]),
    ],
)
def test_answers_of_templates_that_render_earlier_turns_otherwise(tokenizer_of, template, found):
    more = {"reasoning_content": "why"} if template == THINKING else {}
    record = turns("a", "b", "c", "d", **more)
    assert answers(record, tokenizer_of(template)) == found
    assert answers(record, tokenizer_of(template), last_only=True) == found[1:]


def test_repeated_words_are_not_taken_for_answers(tokenizer_of):
    """Users that quote the answers, and the heading before one."""
    record = turns("b d [assistant]\n", "b", "b\n[assistant]\nd", "d")
    found = ["b<end>\n", "<think>\n\n</think>\n\nd<end>\n"]
    assert answers(record, tokenizer_of(THINKING)) == found
    assert answers(turns("<end>", "x", "x<end>", "x<end>x"), tokenizer_of(LAST_ENDS)) == [
        "x<end>",
        "x<end>x<return>",
    ]


def test_thoughts_inside_the_content_of_earlier_turns(tokenizer_of):
    record = turns("a", "<think>hm</think>b", "c", "<think>ah</think>d")
    assert answers(record, tokenizer_of(OPENING)) == ["b<eos>", "d<eos>"]


@pytest.mark.parametrize("name", ["reasoning", "thinking", "reasoning_content"])
def test_reasoning_goes_to_the_template_under_its_own_name(tokenizer_of, name):
    record = turns("a", "b", **{name: "why"})
    assert answers(record, tokenizer_of(THINKING)) == ["<think>\nwhy\n</think>\n\nb<end>\n"]


TOOLS = [{"name": "add"}, {"name": "mul"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
CALLS = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "two"},
]


def test_tools_and_their_calls(tokenizer_of):
    tokenizer = tokenizer_of(CALLING)
    called = '<call>add{"x": 1}</call>' * 2 + "<end>"
    assert answers({"messages": CALLS, "tools": TOOLS}, tokenizer) == [called, "two<end>"]
    whole, _ = render(conversation_of({"messages": CALLS, "tools": TOOLS}, "s"), tokenizer)
    assert whole.startswith("<tools>add,mul</tools><user>1+1?<end><assistant><call>add")
    shared = {
        "tools": '[{"name": "add"}]',
        "conversations": [
            {"from": "human", "value": "1+1?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "two"},
        ],
    }
    assert answers(shared, tokenizer) == ['<call>add{"x": 1}</call><end>', "two<end>"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": CALLS}, r"does not use the tool_calls of message 2, which would be dropped"),
        ({**turns("a", "b"), "tools": TOOLS}, "does not use its tools"),
        (turns("a", "b", reasoning="why"), "does not use the reasoning of message 2"),
    ],
)
def test_what_a_template_would_drop_is_refused_by_line(tokenizer_of, record, words):
    with pytest.raises(InputError, match=f"line 1 of d.jsonl: the tokenizer's .* {words}"):
        answers(record, tokenizer_of(PLAIN))
    with pytest.raises(InputError, match=r"line 1 of d.jsonl: no chat template takes"):
        answers(record, tokenizer_of(None))


def test_an_answer_that_begins_otherwise_is_refused_with_both_beginnings(tokenizer_of):
    template = (
        "{% for m in messages %}{{ 'BOT:' if m.role == 'assistant' and not loop.last else "
        "'[' + m.role + ']' }}{{ m.content }}.{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    words = (
        r"message 2 of 4 begins after '\.BOT:', where the generation prompt is '\.\[assistant\]'"
    )
    with pytest.raises(InputError, match=words):
        answers(turns("a", "b", "c", "d"), tokenizer_of(template))
    assert answers(turns("a", "b", "c", "d"), tokenizer_of(template), last_only=True) == ["d."]


def test_weights_and_given_turns_carry_no_loss(tokenizer_of):
    record = turns("a", "b", "c", "d")
    record["messages"][1]["weight"] = 0
    assert answers(record, tokenizer_of(PLAIN)) == ["d</s>"]
    messages = turns("a", "b", "c", "d")["messages"]
    split = {"prompt": messages[:3], "completion": messages[3:]}
    assert answers(split, tokenizer_of(PLAIN)) == ["d</s>"]


def test_parts_of_content_are_joined_and_pictures_refused(tokenizer_of):
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    assert answers(turns("a", parts), tokenizer_of(PLAIN)) == ["bc</s>"]
    with pytest.raises(InputError, match=r"line 1 of d.jsonl has content of type image_url"):
        answers(turns([{"type": "image_url"}], "b"), tokenizer_of(PLAIN))


def test_options_of_a_line_reach_its_template(tokenizer_of):
    template = PLAIN.replace("<assistant>", "<assistant>{{ mood }}")
    record = {**turns("a", "b"), "chat_template_kwargs": {"mood": "calm"}}
    template = "{{ mood }}" + PLAIN
    text, _ = render(conversation_of(record, "s"), tokenizer_of(template))
    assert text == "calm<user>a</s><assistant>b</s>"
