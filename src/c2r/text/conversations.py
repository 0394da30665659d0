"""Lines of instruction data as conversations, and conversations as text with its answers marked.

Every kind of line becomes messages of one form, `{"role": ..., "content": ...}`: an optional system
message, then user and assistant in turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from c2r.errors import InputError, one_line
from c2r.interrupts import time_limit
from c2r.text.files import Text, json_lines

Messages = list[dict[str, str]]

_PAIRS = (("instruction", "output"), ("question", "answer"), ("prompt", "completion"))
_MOST_SECONDS = 20.0  # of a conversation's template, which comes with the model
_TEMPLATE_ERRORS = (
    TimeoutError, ZeroDivisionError, TypeError, ValueError, OverflowError, RecursionError,
    AttributeError, LookupError, MemoryError,
)  # fmt: skip
"""What Python raises for a template that is not one of text."""
_ROLES = {"human": "user", "gpt": "assistant"}
_HEADINGS = {"system": "", "user": "### User:\n", "assistant": "### Assistant:\n"}
_FIELDS = "messages, conversations, " + ", ".join("/".join(pair) for pair in _PAIRS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Messages in valid order, and `source`, which names their line in errors."""

    messages: Messages
    source: str


def read_conversations(text: Text) -> Iterator[Conversation]:
    """The conversation of each line of a JSONL text; blank lines are passed over.

    A line holds one of

    - `messages`: `[{"role", "content"}, ...]`;
    - `conversations`: strings, the user's first, or `[{"from", "value"}, ...]` (`human`, `gpt`);
    - `instruction`, perhaps `input`, and `output`;
    - `question` and `answer`; `prompt` and `completion`.

    Raises:
        InputError: a line is not JSON, lacks its fields, or has roles out of order.
    """
    for record, source in json_lines(text):
        messages = _messages(record, source)
        _check_roles([message["role"] for message in messages], source)
        yield Conversation(messages=messages, source=source)


def _messages(record: dict[str, Any], source: str) -> Messages:
    """The messages of one line, whichever of the known forms it has."""
    if "messages" in record:
        return [_message(m, "role", "content", source) for m in _list(record, "messages", source)]
    if "conversations" in record:
        turns = _list(record, "conversations", source)
        if all(isinstance(turn, str) for turn in turns):
            roles = ("user", "assistant")
            return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return [_message(turn, "from", "value", source) for turn in turns]
    for question, answer in _PAIRS:
        if question in record and answer in record:
            asked = _string(record, question, source)
            if question == "instruction" and record.get("input"):
                asked += "\n\n" + _string(record, "input", source)
            return [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": _string(record, answer, source)},
            ]
    raise InputError(
        f"{source} has the fields {', '.join(record) or '(none)'}; it must have one of {_FIELDS}"
    )


def _list(record: dict[str, Any], name: str, source: str) -> list[Any]:
    value = record[name]
    if not isinstance(value, list) or not value:
        raise InputError(f"{source}: {name} must be a list of at least one message")
    return value


def _string(record: dict[str, Any], name: str, source: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise InputError(f"{source}: {name} is a {type(value).__name__}; it must be text")
    return value


def _message(entry: Any, role: str, content: str, source: str) -> dict[str, str]:
    if not isinstance(entry, dict) or not {role, content} <= entry.keys():
        found = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
        raise InputError(f"{source} has a message of {found}; it must have {role} and {content}")
    name = _string(entry, role, source)
    return {"role": _ROLES.get(name, name), "content": _string(entry, content, source)}


def _check_roles(roles: Sequence[str], source: str) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or list(turns) != expected:
        raise InputError(
            f"{source} has the roles {', '.join(roles)}; give user and assistant in turn, ending "
            "with assistant, after at most one system message"
        )


def render(conversation: Conversation, tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the `[start, end)` characters of each answer but empty ones.

    The tokenizer's chat template makes the text. Without one, messages are headed `### User:` and
    `### Assistant:`; a system message has no heading. Each ends with a blank line, the answer
    before it with the tokenizer's end-of-text token, where it has one. An answer includes its end
    marker, so that a model learns to stop. Where an answer begins and ends is found by rendering
    the conversation up to there.

    Raises:
        InputError: the template refuses the conversation, or renders its beginning otherwise
            without the rest.
    """
    try:
        with time_limit(_MOST_SECONDS):
            return _rendered(conversation, tokenizer)
    except (TemplateError, *_TEMPLATE_ERRORS) as error:
        raise InputError(
            f"{conversation.source}: the tokenizer's chat template refuses it ({one_line(error)}); "
            "change the messages, or the template"
        ) from error


def _rendered(conversation: Conversation, tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    messages, spans = conversation.messages, []
    text = _render(messages, tokenizer)
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and message["content"].strip():
            # Rendered up to there: templates add headings and ends that no search would find.
            before = _render(messages[:index], tokenizer, asks=True)
            through = _render(messages[: index + 1], tokenizer)
            if not (text.startswith(through) and through.startswith(before)):
                raise InputError(
                    f"{conversation.source}: the tokenizer's chat template renders message "
                    f"{index + 1} of {len(messages)} otherwise when the rest follows, so that "
                    "the answer cannot be told from the text; end each example with the answer "
                    "to learn, or give the tokenizer another chat template"
                )
            spans.append((len(before), len(through)))
    return text, spans


def _render(messages: Messages, tokenizer: Any, asks: bool = False) -> str:
    """The text of `messages`; where it `asks`, up to where the assistant begins."""
    if getattr(tokenizer, "chat_template", None):
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        )
    ends = {"assistant": tokenizer.eos_token or ""}
    parts = [f"{_HEADINGS[m['role']]}{m['content']}{ends.get(m['role'], '')}\n\n" for m in messages]
    return (tokenizer.bos_token or "") + "".join(parts) + (_HEADINGS["assistant"] if asks else "")
