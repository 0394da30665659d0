"""Records of instruction data as conversations, whichever of the common forms they have."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from c2r.errors import InputError, one_line

Message = dict[str, Any]
Record = Mapping[str, Any]

_PAIRS = (("instruction", "output"), ("question", "answer"), ("prompt", "completion"))
_ROLES = {
    "human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
"""Names that data in the form of ShareGPT gives to roles."""
_FIELDS = "messages, conversations, text, " + ", ".join("/".join(pair) for pair in _PAIRS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """What a chat template is given.

    Attributes:
        messages: as the data has them, whole; text parts of a message's content are one string.
        source: names their line in errors.
        tools: descriptions of the functions that the assistant may call.
        options: further arguments of the template, such as `enable_thinking`.
        num_given: first messages that no answer is learnt from.
    """

    messages: tuple[Message, ...]
    source: str
    tools: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    num_given: int = 0


def conversation_of(record: Record, source: str) -> Conversation:
    """The conversation of a record, which holds one of

    - `messages`: `[{"role", "content", ...}, ...]`, as chat APIs take them;
    - `conversations`: strings, the user's first, or `[{"from", "value"}, ...]` (`human`, `gpt`,
      `function_call`, `observation`), perhaps with `system` beside them;
    - `instruction`, perhaps `input`, and `output`;
    - `question` and `answer`; `prompt` and `completion`, either texts or lists of messages.

    `tools` and `chat_template_kwargs` beside them are for the template. Content may be a list of
    parts, `{"type": "text", "text": ...}` each.

    Raises:
        InputError: the fields of the record or of a message are others, or there is no answer at
            its end.
    """
    messages, num_given = _messages(record, source)
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant" or "user" not in roles:
        raise InputError(
            f"{source} has the roles {', '.join(roles)}; give user and assistant in turn, ending "
            "with assistant"
        )
    options = _parsed(record.get("chat_template_kwargs") or {}, "chat_template_kwargs", source)
    tools = _parsed(record.get("tools") or [], "tools", source)
    if not isinstance(options, Mapping) or not isinstance(tools, list):
        raise InputError(
            f"{source}: chat_template_kwargs must be an object, and tools a list of functions"
        )
    return Conversation(
        messages=tuple(messages),
        source=source,
        tools=tuple(tools),
        options=options,
        num_given=num_given,
    )


def plain_text_of(record: Record) -> str | None:
    """The text of a record that holds `text` and no conversation."""
    text = record.get("text")
    known = ("messages", "conversations", *(name for pair in _PAIRS for name in pair))
    return text if isinstance(text, str) and not record.keys() & set(known) else None


def _messages(record: Record, source: str) -> tuple[list[Message], int]:
    """The messages of a record, and how many first ones are given."""
    if "messages" in record:
        return [_message(m, "role", source) for m in _list(record, "messages", source)], 0
    if "conversations" in record:
        return _shared(record, source), 0
    for question, answer in _PAIRS:
        if question not in record or answer not in record:
            continue
        if isinstance(record[question], list) and isinstance(record[answer], list):
            parts = [_list(record, name, source) for name in (question, answer)]
            given, learnt = ([_message(m, "role", source) for m in part] for part in parts)
            return given + learnt, len(given)
        asked = _string(record, question, source)
        if question == "instruction" and record.get("input"):
            asked += "\n\n" + _string(record, "input", source)
        reply = _string(record, answer, source)
        first = [{"role": "system", "content": record["system"]}] if record.get("system") else []
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        return first + turns, 0
    raise InputError(
        f"{source} has the fields {', '.join(record) or '(none)'}; it must have one of {_FIELDS}"
    )


def _shared(record: Record, source: str) -> list[Message]:
    """The messages of `conversations`: strings, or turns as ShareGPT has them."""
    turns = _list(record, "conversations", source)
    first = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    if all(isinstance(turn, str) for turn in turns):
        roles = ("user", "assistant")
        return first + [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    is_chat = all(isinstance(turn, dict) and "role" in turn for turn in turns)
    return first + [_message(turn, "role" if is_chat else "from", source) for turn in turns]


def _message(entry: Any, role: str, source: str) -> Message:
    content = "content" if role == "role" else "value"
    has_more = isinstance(entry, dict) and bool(entry.get("tool_calls"))
    if not isinstance(entry, dict) or role not in entry or not (content in entry or has_more):
        found = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
        raise InputError(f"{source} has a message of {found}; it must have {role} and {content}")
    name = _string(entry, role, source)
    # Tables have every field in every message, None where a message has it not.
    rest = {k: v for k, v in entry.items() if k not in (role, content) and v is not None}
    if rest.get("tool_calls"):
        rest["tool_calls"] = _tool_calls(rest["tool_calls"], source)
    if name == "function_call":
        call = _parsed(_string(entry, content, source), content, source)
        calls = call if isinstance(call, list) else [call]
        return {"role": "assistant", "content": None, "tool_calls": _tool_calls(calls, source)}
    text = _content(entry.get(content), has_more, source)
    return {"role": _ROLES.get(name, name), "content": text, **rest}


def _content(value: Any, may_lack: bool, source: str) -> str | None:
    """The text of a message, its parts joined; None where it only calls tools."""
    if isinstance(value, str) or (value is None and may_lack):
        return value
    if not isinstance(value, list):
        raise InputError(f"{source}: content is a {type(value).__name__}; it must be text")
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind != "text" or not isinstance(text, str):
            raise InputError(
                f"{source} has content of type {kind}, which is no text; leave such lines out"
            )
        texts.append(text)
    return "".join(texts)


def _tool_calls(calls: Any, source: str) -> list[Any]:
    """Tool calls with their arguments as objects, which templates write as they like."""
    found = []
    for call in calls if isinstance(calls, list) else [None]:
        outer = dict(call) if isinstance(call, dict) else {}
        function = outer.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{source} has tool_calls without the name of a function")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            function = {**function, "arguments": _parsed(arguments or "{}", "arguments", source)}
        rest = outer if "function" in outer else {"type": "function"}
        found.append({**rest, "function": function})
    return found


def _parsed(value: Any, name: str, source: str) -> Any:
    """JSON data, which tables hold as a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: {name} is a string that is no JSON ({one_line(error)})"
        ) from None


def _list(record: Record, name: str, source: str) -> list[Any]:
    value = record[name]
    if not isinstance(value, list) or not value:
        raise InputError(f"{source}: {name} must be a list of at least one message")
    return value


def _string(record: Record, name: str, source: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise InputError(f"{source}: {name} is a {type(value).__name__}; it must be text")
    return value
